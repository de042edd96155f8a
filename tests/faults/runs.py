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
from storage.bucket import _default_staging
from tests.faults import work
from tests.faults.flow_child import Setting, run_flow, short_transfer
from tests.faults.residue import stale
from tests.faults.servers import Dask, MLflow, Prefect
from tests.faults.trials import Outcome
from tests.faults.warm import WarmProcess
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
        folder: For what servers and runs write.
        models: Where the models are already.
    """

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        self.config = short_transfer(models)
        self._mlflow: MLflow | None = None
        self.prefect = Prefect(folder)
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
                place.staging = _default_staging(place.url)  # of the flow, which opens the address by itself
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
            wrong.append(f"rows: {again.get('rows', again)}; {last_error(self.log)}")
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


def last_error(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if "Error" in line]
    return lines[-1][:300] if lines else ""
