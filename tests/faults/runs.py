"""Faults of whole runs: the flow's process, a Dask worker, Prefect, MLflow, disks, and files of real artefacts."""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from bico.errors import StoreError
from storage.bucket import _default_workshop
from storage.manifest import MANIFEST
from tests.faults import disks, work
from tests.faults.flow_child import Setting, run_flow, short_transfer
from tests.faults.residue import stale
from tests.faults.servers import Dask, MLflow, Prefect
from tests.faults.trials import Outcome
from tests.faults.warm import WarmProcess
from tests.faults.wire import Wire
from tests.faults.work import Boundary, Fault
from tests.places import FolderPlace, Place, new_bucket_place

PATIENCE = 900
"""Seconds after which a run counts as hanging; one takes a few where nothing else runs."""


@dataclass(frozen=True)
class RunCase:
    """One fault of a whole run."""

    name: str
    group: str
    inject: Callable[["RunTrial"], None]
    place: str = "folder"
    certain: bool = True
    possible: Callable[[], bool] = lambda: True


class Bench:
    """The servers and the undisturbed run that all trials share.

    Arguments:
        folder: Where the models are already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = short_transfer(folder)
        self._mlflow: MLflow | None = None
        self.prefect = Prefect(folder / "prefect.log")
        self.dask = Dask(folder)
        with self.trial(RunCase("undisturbed", "", lambda trial: None), 0) as trial:
            started = time.perf_counter()
            self.expected = trial.run()
            self.seconds = time.perf_counter() - started
            if "rows" not in self.expected:
                raise AssertionError(f"the undisturbed run ended with {self.expected}: {trial.log.read_text()[-2000:]}")
            self.files = trial.contents()
            self.store = Path(trial.place.url)

    @contextmanager
    def trial(self, case: RunCase, seed: int) -> Iterator["RunTrial"]:
        home = self.folder / f"home-{seed}"
        home.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            if case.place == "folder":
                place: Place = FolderPlace(str(home / "store"), None)
            else:
                place = new_bucket_place(home, patch)
                place.workshop = _default_workshop(place.url)  # of the flow, which opens the address by itself
            trial = RunTrial(self, case, home, place, random.Random(seed))
            try:
                yield trial
            finally:
                trial.end()

    def mlflow(self) -> MLflow:
        """The MLflow server, started when it is first asked for."""
        if self._mlflow is None:
            self._mlflow = MLflow(self.folder)
        return self._mlflow

    def close(self) -> None:
        self.dask.close()
        self.prefect.kill()
        if self._mlflow is not None:
            self._mlflow.kill()


@dataclass
class RunTrial:
    """One home with its processes; a fault's `inject` plays with them."""

    bench: Bench
    case: RunCase
    home: Path
    place: Place
    random: random.Random
    struck: bool = False
    api: str = ""
    mlflow: dict[str, str] = field(default_factory=dict)
    """Settings, where the run records elsewhere than the others."""
    held: ExitStack = field(default_factory=ExitStack)
    over: bool = False
    _number: int = 0

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def token(self) -> Path:
        return self.home / "struck"

    def start(self, **setting: Any) -> tuple[WarmProcess, Path]:
        self._number += 1
        answer = self.home / f"answer-{self._number}"
        config = self.bench.config | {"out": str(self.home / f"out-{self._number}")}
        settings = {
            "home": str(self.home), "store": self.place.url, "device": "cpu",
            "dask_scheduler": self.bench.dask.address,
            "mlflow_uri": f"sqlite:///{self.bench.folder / 'mlflow.db'}",
        } | self.mlflow  # fmt: skip
        told = Setting(dict(os.environ), self.log, token=self.token, **setting)
        api = self.api or self.bench.prefect.api
        process = work.PROCESSES.Process(target=run_flow, args=(told, api, config, settings, answer))
        process.start()
        return process, answer

    def wait(self, process: WarmProcess, answer: Path) -> dict[str, Any]:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
            return {"hung": True}
        return json.loads(answer.read_text()) if answer.exists() else {"ended": process.exitcode}

    def workers(self, count: int = 1, **setting: Any) -> None:
        self.bench.dask.kill_workers()
        self.bench.dask.start_workers(count, token=self.token, **setting)

    def run(self, **setting: Any) -> dict[str, Any]:
        """Runs the flow, with workers unless there are some, and returns its answer or how it ended."""
        if not self.bench.dask.has_workers:
            self.workers()
        return self.wait(*self.start(**setting))

    def when_struck(self, act: Callable[[], None]) -> None:
        """Does something while the process that is to be struck waits for it."""

        def watch() -> None:
            while not self.over and not self.token.exists():
                time.sleep(0.01)
            if not self.over:
                act()
            self.token.with_suffix(".done").touch()

        self.over = False
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()

    def contents(self) -> dict[str, dict[str, str]]:
        """Digests of all artefacts that a new reader takes for complete, by file, after reading them all."""
        found: dict[str, dict[str, str]] = {}
        store = self.place.open()
        for key in store.backend.listed():
            if not store.is_complete(key):
                continue
            try:
                store.folder(key)
                found[key] = {name: entry.sha256 for name, entry in store.backend.look(key).files.items()}
            except StoreError as error:
                found[key] = {"unreadable": str(error)}
        return found

    def end(self) -> None:
        self.over = True
        self.held.close()
        self.bench.dask.kill_workers()

    def outcome(self) -> Outcome:
        """Injects the fault, looks, runs again, and compares."""
        try:
            self.case.inject(self)
            wrong = []
        except AssertionError as error:
            wrong = [str(error)]
        expected = self.bench.expected
        taken = [key for key, files in self.contents().items() if files != self.bench.files.get(key)]
        again = self.run()
        left = ["the second run hung"] if "hung" in again else []
        if again.get("rows") != expected["rows"]:
            wrong.append(f"rows: {again.get('rows', again)}; {_last_error(self.log)}")
        else:
            wrong += self._not_recorded(again) + self._not_written(again)
        after = self.contents()
        wrong += [key for key, files in self.bench.files.items() if after.get(key) != files]
        wrong += [f"{key} is in no undisturbed run" for key in after.keys() - self.bench.files.keys()]
        self.end()
        left += stale(self.place)
        return Outcome(self.case.name, taken, wrong, left, self.struck)

    def _not_recorded(self, answer: dict[str, Any]) -> list[str]:
        """What MLflow says of a run that the run did not."""
        about = answer["outputs"]["mlflow"]
        client = MlflowClient(tracking_uri=about["uri"])
        children = client.search_runs([about["experiment"]], f"tags.`mlflow.parentRunId` = '{about['run']}'")
        found = sorted((run.info.status, run.data.metrics.get("accuracy")) for run in children)
        status = client.get_run(about["run"]).info.status
        if status == "FINISHED" and found == sorted(("FINISHED", row["accuracy"]) for row in answer["rows"]):
            return []
        return [f"MLflow has {status} with {found}"]

    def _not_written(self, answer: dict[str, Any]) -> list[str]:
        """Files for people that differ from those of the undisturbed run."""
        kinds = ("table", "markdown", "calibration")
        same = (Path(answer["outputs"][kind]).read_bytes() for kind in kinds)
        ours = (Path(self.bench.expected["outputs"][kind]).read_bytes() for kind in kinds)
        return [f"{kind} differs" for kind, a, b in zip(kinds, same, ours, strict=True) if a != b]


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if "Error" in line]
    return lines[-1][:300] if lines else ""


# The faults


def in_the_flow(boundary: Boundary, nth: int, action: str = "kill", skew: float = 0.0) -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        trial.run(fault=Fault(boundary, nth, action), skew=skew)
        trial.struck = trial.token.exists()

    return inject


def in_a_worker(boundary: Boundary, nth: int, action: str = "kill") -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        trial.workers(2, fault=Fault(boundary, nth, action))
        answer = trial.run()
        trial.struck = trial.token.exists()
        if action == "kill":
            _expect(answer, trial)  # the other worker takes over
        trial.bench.dask.kill_workers()

    return inject


def _expect(answer: dict[str, Any], trial: RunTrial) -> None:
    if answer.get("rows") != trial.bench.expected["rows"]:
        raise AssertionError(f"a run that should survive ended with {answer}; {_last_error(trial.log)}")


def at_a_random_moment(trial: RunTrial) -> None:
    trial.workers()
    process, answer = trial.start()
    process.join(trial.random.uniform(0.1, 0.9) * trial.bench.seconds)
    process.kill()
    trial.struck = "rows" not in trial.wait(process, answer)


def on_a_small_disk(share: float) -> Callable[[RunTrial], None]:
    """A real disk that holds a share of what the run writes; the kernel says when it is full."""

    def inject(trial: RunTrial) -> None:
        trial.place.open()
        blocks = sum(-(-file.stat().st_size // 4096) for file in trial.bench.store.rglob("*") if file.is_file())
        with disks.small(trial.place.bench, int(share * blocks) * 4096):
            answer = trial.run()
            trial.bench.dask.kill_workers()
        trial.struck = "rows" not in answer

    return inject


def read_only_from(boundary: Boundary, nth: int, where: str) -> Callable[[RunTrial], None]:
    """The disk is remounted for reading only while a flow or a worker is at work."""

    def inject(trial: RunTrial) -> None:
        trial.place.open()
        fault = Fault(boundary, nth, "call")
        with ExitStack() as held:
            trial.when_struck(lambda: held.enter_context(disks.read_only(trial.place.bench)))
            if where == "worker":
                trial.workers(fault=fault)
                answer = trial.run()
            else:
                answer = trial.run(fault=fault)
            trial.bench.dask.kill_workers()
        trial.struck = "rows" not in answer

    return inject


def prefect_killed(boundary: Boundary, nth: int) -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        trial.when_struck(trial.bench.prefect.kill)
        try:
            trial.run(fault=Fault(boundary, nth, "call"))
        finally:
            trial.struck = trial.token.exists()
            if trial.struck:
                trial.bench.prefect.start()

    return inject


def prefect_lost(boundary: Boundary, nth: int, seconds: float | None = None) -> Callable[[RunTrial], None]:
    """The connection breaks, for good or for some seconds."""

    def inject(trial: RunTrial) -> None:
        wire = Wire(trial.bench.prefect.port)
        trial.held.callback(wire.close)
        trial.api = f"http://127.0.0.1:{wire.port}/api"
        trial.when_struck(lambda: _cut(wire, seconds))
        trial.run(fault=Fault(boundary, nth, "call"))
        trial.struck = wire.was_cut
        wire.mend()

    return inject


def bucket_lost(boundary: Boundary, nth: int, seconds: float | None = None) -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        server = os.environ["AWS_ENDPOINT_URL"]
        wire = Wire(int(server.rpartition(":")[2]))
        trial.held.callback(wire.close)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
            trial.workers()
            trial.when_struck(lambda: _cut(wire, seconds))
            answer = trial.run(fault=Fault(boundary, nth, "call"))
        trial.struck = wire.was_cut
        trial.bench.dask.kill_workers()  # theirs was the wire
        if seconds is not None:
            _expect(answer, trial)

    return inject


def _cut(wire: Wire, seconds: float | None) -> None:
    wire.cut()
    if seconds is not None:
        threading.Timer(seconds, wire.mend).start()


def mlflow_lost(sendings: int) -> Callable[[RunTrial], None]:
    """The connection to an MLflow server breaks while results are recorded there."""

    def inject(trial: RunTrial) -> None:
        server = trial.bench.mlflow()
        wire = Wire(server.port)
        trial.held.callback(wire.close)
        # An experiment of its own: where files go is settled by whoever creates it.
        trial.mlflow = {"mlflow_uri": f"http://127.0.0.1:{wire.port}", "experiment": "served"}
        wire.cut_after(sendings)
        trial.run()
        trial.struck = wire.was_cut
        wire.mend()

    return inject


def damaged(how: Callable[[bytes, random.Random], bytes | None], manifest: bool = False) -> Callable[[RunTrial], None]:
    """A file of a finished run, of a stage chosen at random, is changed behind the store's back."""

    def inject(trial: RunTrial) -> None:
        trial.run()
        key = trial.random.choice(sorted(trial.bench.files))
        name = MANIFEST if manifest else trial.random.choice(sorted(trial.bench.files[key]))
        before = trial.place.read(key, name)
        after = how(before, trial.random)
        if after is None:
            trial.place.delete(key, name)
        else:
            trial.place.write(key, name, after)
        trial.struck = after != before

    return inject


def concurrently(flows: int, killed: int = 0) -> Callable[[RunTrial], None]:
    """Several flows on the same keys; some of them die."""

    def inject(trial: RunTrial) -> None:
        trial.workers(2)
        started = [trial.start() for _ in range(flows)]
        for process, _ in started[:killed]:
            process.join(trial.random.uniform(0.2, 0.7) * trial.bench.seconds)
            process.kill()
        answers = [trial.wait(process, answer) for process, answer in started]
        trial.struck = True
        for answer in answers[killed:]:
            _expect(answer, trial)

    return inject
