"""What can happen to a whole run; each gives a function that makes it happen to a trial."""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from storage.manifest import MANIFEST
from tests.faults import disks
from tests.faults.runs import RunTrial, last_error
from tests.faults.trials import How, damage_file
from tests.faults.wire import Wire
from tests.faults.work import Fault, FaultPoint


def in_the_flow(point: FaultPoint, nth: int, action: str = "kill", skew: float = 0.0) -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        trial.run(fault=Fault(point, nth, action), skew=skew)
        trial.struck = trial.token.exists()

    return inject


def in_a_worker(point: FaultPoint, nth: int, action: str = "kill") -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        trial.workers(2, fault=Fault(point, nth, action))
        answer = trial.run()
        trial.struck = trial.token.exists()
        if action == "kill":
            _expect(answer, trial)  # the other worker takes over
        trial.bench.dask.kill_workers()

    return inject


def _expect(answer: dict[str, Any], trial: RunTrial) -> None:
    if answer.get("rows") != trial.bench.expected["rows"]:
        raise AssertionError(f"a run that should survive ended with {answer}; {last_error(trial.log)}")


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


def read_only_from(point: FaultPoint, nth: int, where: str) -> Callable[[RunTrial], None]:
    """The disk is remounted for reading only while a flow or a worker is at work."""

    def inject(trial: RunTrial) -> None:
        trial.place.open()
        fault = Fault(point, nth, "call")
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


def prefect_killed(point: FaultPoint, nth: int) -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        trial.when_struck(trial.bench.prefect.kill)
        try:
            trial.run(fault=Fault(point, nth, "call"))
        finally:
            trial.struck = trial.token.exists()
            if trial.struck:
                trial.bench.prefect.start()

    return inject


def prefect_lost(point: FaultPoint, nth: int, seconds: float | None = None) -> Callable[[RunTrial], None]:
    """The connection breaks, for good or for some seconds."""

    def inject(trial: RunTrial) -> None:
        wire = Wire(trial.bench.prefect.port)
        trial.held.callback(wire.close)
        trial.api = f"http://127.0.0.1:{wire.port}/api"
        trial.when_struck(lambda: _cut(wire, seconds))
        trial.run(fault=Fault(point, nth, "call"))
        trial.struck = wire.was_cut
        wire.mend()

    return inject


def bucket_lost(point: FaultPoint, nth: int, seconds: float | None = None) -> Callable[[RunTrial], None]:
    def inject(trial: RunTrial) -> None:
        server = os.environ["AWS_ENDPOINT_URL"]
        wire = Wire(int(server.rpartition(":")[2]))
        trial.held.callback(wire.close)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
            trial.workers()
            trial.when_struck(lambda: _cut(wire, seconds))
            answer = trial.run(fault=Fault(point, nth, "call"))
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


def damaged(how: How, manifest: bool = False) -> Callable[[RunTrial], None]:
    """A file of a finished run, of a stage chosen at random, is changed behind the store's back."""

    def inject(trial: RunTrial) -> None:
        trial.run()
        key = trial.random.choice(sorted(trial.bench.files))
        name = MANIFEST if manifest else trial.random.choice(sorted(trial.bench.files[key]))
        trial.struck = damage_file(trial.place, key, name, how, trial.random)

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
