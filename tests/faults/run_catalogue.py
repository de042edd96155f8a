"""Which faults of whole runs there are."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest

from storage.fault_points import FaultPoint
from tests.faults import disks, trials
from tests.faults import run_faults as r
from tests.faults.runs import Bench, RunCase
from tests.faults.trials import Outcome

DAY = 86400.0


def run_cases() -> Iterator[RunCase]:
    for place in ("folder", "bucket"):
        points = [
            (FaultPoint.LOCKED, 1),
            (FaultPoint.PREPARED, 2),
            (FaultPoint.BUILT, 3),
            (FaultPoint.SEALED, 4),
            (FaultPoint.COMMITTED, 2),
            (FaultPoint.COMMITTED, 6),
        ]
        for point, nth in [*points, *([(FaultPoint.UPLOADED, 9)] if place == "bucket" else [])]:
            inject = r.in_the_flow(point, nth)
            yield RunCase(f"flow killed at {point} {nth}", "flow's process killed at a fault point", inject, place)
        for number in range(2):
            name = f"flow killed at random ({number})"
            yield RunCase(name, "flow's process killed at a random moment", r.at_a_random_moment, place, certain=False)
        for point, nth in ((FaultPoint.PREPARED, 1), (FaultPoint.SEALED, 1), (FaultPoint.COMMITTED, 1)):
            inject = r.in_a_worker(point, nth)
            yield RunCase(f"worker killed at {point}", "Dask worker killed", inject, place)
        for how in (trials.truncated, trials.flipped, trials.deleted, trials.zeroed):
            yield RunCase(f"file {how.__name__}", "file of a run damaged", r.damaged(how), place)
        yield RunCase("manifest flipped", "file of a run damaged", r.damaged(trials.flipped, manifest=True), place)
        for flows in (2, 3, 4):
            yield RunCase(f"{flows} flows", "concurrent flows", r.concurrently(flows), place)
        yield RunCase("2 of 4 flows killed", "concurrent flows, killed", r.concurrently(4, killed=2), place)
        for days in (-400, 400):
            inject = r.in_the_flow(FaultPoint.COMMITTED, 3, skew=days * DAY)
            yield RunCase(f"clock {days:+} days, then killed", "clock skew and a killed flow", inject, place)

    for share in (0.2, 0.5, 0.8):
        name = f"disk of {share:.0%} of what is needed"
        yield RunCase(name, "full disk", r.on_a_small_disk(share), possible=disks.possible)
    yield RunCase("flow: files stop growing", "full disk", r.in_the_flow(FaultPoint.PREPARED, 2, "files stop growing"))
    yield RunCase(
        "worker: files stop growing", "full disk", r.in_a_worker(FaultPoint.PREPARED, 1, "files stop growing")
    )
    yield RunCase("flow: full at uploaded", "full disk", r.in_the_flow(FaultPoint.UPLOADED, 5, "full"), "bucket")
    for where, nth in (("flow", 3), ("worker", 1)):
        inject = r.read_only_from(FaultPoint.BUILT, nth, where)
        yield RunCase(f"{where}: disk turns read-only", "read-only store", inject, possible=disks.possible)
    yield RunCase(
        "flow: read-only at uploaded", "read-only store", r.in_the_flow(FaultPoint.UPLOADED, 7, "read-only"), "bucket"
    )

    for point, nth in ((FaultPoint.PREPARED, 2), (FaultPoint.COMMITTED, 5)):
        yield RunCase(f"killed at {point} {nth}", "Prefect server killed", r.prefect_killed(point, nth))
    for point, nth in ((FaultPoint.BUILT, 1), (FaultPoint.COMMITTED, 4)):
        name = f"connection lost at {point} {nth}"
        yield RunCase(name, "Prefect lost", r.prefect_lost(point, nth))
    yield RunCase("connection lost for a second", "Prefect lost", r.prefect_lost(FaultPoint.COMMITTED, 3, 1.0))
    for point, nth, seconds in (
        (FaultPoint.BUILT, 2, None),
        (FaultPoint.UPLOADED, 8, None),
        (FaultPoint.UPLOADED, 12, 1.0),
    ):
        how = "lost" if seconds is None else "lost for a second"
        inject = r.bucket_lost(point, nth, seconds)
        yield RunCase(f"bucket {how} at {point} {nth}", "bucket lost", inject, "bucket")
    for sendings in (3, 12, 25):
        yield RunCase(f"connection lost at sending {sendings}", "MLflow lost", r.mlflow_lost(sendings))


def one_of_each_first(found: list[RunCase]) -> list[RunCase]:
    """In rounds over the kinds, so that a session that is cut short has seen them all."""
    kinds: dict[tuple[str, str], list[RunCase]] = {}
    for case in found:
        kinds.setdefault((case.group, case.place), []).append(case)
    return [case for group in zip_longest(*kinds.values()) for case in group if case is not None]


def run_injections(bench: Callable[[], Bench]) -> Iterator[tuple[str, RunCase, Callable[[], Outcome]]]:
    """The faults of whole runs; `bench` gives their servers, and is called when one of them is run."""
    for number, case in enumerate(one_of_each_first(list(run_cases())), 1):
        if case.possible():
            yield f"run, {case.place}", case, partial(run_fault, bench, case, number)


def run_fault(bench: Callable[[], Bench], case: RunCase, number: int) -> Outcome:
    with bench().trial(case, number) as trial:
        outcome = trial.outcome()
    return outcome.certain() if case.certain else outcome
