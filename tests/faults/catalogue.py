"""Which faults there are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from storage.fault_points import FaultPoint
from tests.faults import disks, trials
from tests.faults.work import Fault

BUILDING = [b for b in FaultPoint if b not in (FaultPoint.REMOVED, FaultPoint.CHOSEN)]
OCCASIONS = {FaultPoint.UPLOADED: (1, 4, 8)}
"""Which of the times that a point is reached are tried: in a bucket every file reaches UPLOADED."""


@dataclass(frozen=True)
class Case:
    """One kind of fault."""

    name: str
    group: str
    """The line of the summary that it counts for."""
    inject: Callable[[trials.Trial], None]
    places: tuple[str, ...] = ("folder", "bucket")
    certain: bool = True
    """Whether it must strike; a kill at a random moment may come too late."""
    possible: Callable[[], bool] = lambda: True
    """Whether this machine lets us do it."""


def cases(repeats: int = 1) -> Iterator[Case]:
    """All kinds of faults; those with a random part `repeats` times."""
    for point in BUILDING:
        places = ("bucket",) if point is FaultPoint.UPLOADED else ("folder", "bucket")
        for nth in OCCASIONS.get(point, (1, 2, 4)):
            fault = Fault(point, nth, "kill")
            yield Case(f"killed at {point} {nth}", "SIGKILL at a fault point", trials.at_a_fault_point(fault), places)
    for point in (FaultPoint.PREPARED, FaultPoint.REMOVED, FaultPoint.COMMITTED):
        inject = trials.at_a_fault_point_while_replacing(Fault(point, 1, "kill"))
        yield Case(f"killed at {point} while replacing", "SIGKILL while replacing damage", inject)
    for action, group in (("full", "full disk"), ("read-only", "read-only store"), ("lost", "connection lost")):
        for point in BUILDING:
            if point in (FaultPoint.UPLOADED, FaultPoint.COMMITTED):
                continue
            yield Case(f"{action} at {point}", group, trials.at_a_fault_point(Fault(point, 2, action)))
        places = ("bucket",)
        yield Case(
            f"{action} at uploaded", group, trials.at_a_fault_point(Fault(FaultPoint.UPLOADED, 5, action)), places
        )
    for nth in (1, 3, 4):
        inject = trials.at_a_fault_point(Fault(FaultPoint.PREPARED, nth, "files stop growing"))
        yield Case(f"files stop growing at prepared {nth}", "full disk", inject)
    for days in (-400, -2, 2, 400):
        yield Case(f"clock {days:+} days", "clock skew", trials.with_skew(days * 86400.0))
        beside = trials.beside_a_clock(days * 86400.0)
        yield Case(f"clock {days:+} days beside a builder", "clock skew", beside)
    for kilobytes in (8, 24, 48, 80):
        inject = trials.on_a_small_disk(kilobytes * 1024)
        yield Case(f"disk of {kilobytes} kB", "full disk", inject, possible=disks.possible)
    for _ in range(repeats):
        yield Case("killed at random", "SIGKILL at a random moment", trials.at_a_random_moment, certain=False)
        for how in (trials.truncated, trials.flipped, trials.zeroed, trials.deleted):
            yield Case(f"file {how.__name__}", f"file {how.__name__}", trials.damage(how))
        for how in (trials.truncated, trials.flipped):
            inject = trials.damage(how, manifest=True)
            yield Case(f"manifest {how.__name__}", f"manifest {how.__name__}", inject)
        for writers in (2, 3, 4):
            inject = trials.concurrently(writers)
            yield Case(f"{writers} writers", "concurrent writers", inject)
            inject = trials.concurrently(writers, machines=True)
            yield Case(f"{writers} machines", "concurrent machines", inject, ("bucket",))
        yield Case("2 of 4 writers killed", "concurrent writers, killed", trials.concurrently(4, killed=2))
        yield Case("beside gc", "gc beside two runs", trials.with_gc)


SHORT = {
    "folder": {
        "killed at leased 1", "killed at locked 2", "killed at prepared 2", "killed at built 1", "killed at sealed 2",
        "killed at committed 1", "killed at committed 4", "killed at removed while replacing", "killed at random",
        "full at sealed", "read-only at prepared", "lost at built", "clock -400 days", "clock +400 days",
        "clock +400 days beside a builder", "disk of 24 kB", "file truncated", "file flipped", "file zeroed",
        "file deleted", "manifest truncated", "manifest flipped", "3 writers", "2 of 4 writers killed", "beside gc",
    },
    "bucket": {
        "killed at uploaded 4", "killed at removed while replacing", "lost at uploaded", "file flipped", "3 machines",
    },
}  # fmt: skip
"""What every run of the test suite tries."""
