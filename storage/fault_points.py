"""Fault points: the steps between which a store may be stopped, by name.

A crash shows its damage between the steps of a protocol, so each such point is a place that tests can get at: they put
an interceptor there that kills the process or raises the error of a full disk. In use there is none, and to reach a
point costs a comparison.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class FaultPoint(StrEnum):
    """In the order in which a store reaches them; `gc` reaches the last. A folder never reaches UPLOADED."""

    LEASED = "leased"
    """The keys are leased; nothing was looked at yet."""
    LOCKED = "locked"
    """This process alone on its machine may build the key."""
    PREPARED = "prepared"
    """Empty folders are there to build in."""
    BUILT = "built"
    """All files are written; none is sealed."""
    SEALED = "sealed"
    """The manifest is written, where nobody looks for it yet."""
    UPLOADED = "uploaded"
    """One file is in the bucket; reached once per file."""
    REMOVED = "removed"
    """The damaged artefact in the way is gone (in a bucket: is about to be replaced); the new one is not there yet."""
    COMMITTED = "committed"
    """The artefact is there for everyone; reached once per artefact."""
    CHOSEN = "chosen"
    """`gc` has chosen the key and not yet looked whether it is leased."""


_interceptor: Callable[[FaultPoint, str], None] | None = None


def reach(point: FaultPoint, key: str) -> None:
    """Tells the interceptor, if there is one, that a key's protocol is at a fault point."""
    if _interceptor is not None:
        _interceptor(point, key)


@contextmanager
def intercepted(interceptor: Callable[[FaultPoint, str], None]) -> Iterator[None]:
    """Has every fault point of this process call `interceptor`, for the time of the context; for tests."""
    global _interceptor  # noqa: PLW0603 - one per process, as the processes are what dies
    before, _interceptor = _interceptor, interceptor
    try:
        yield
    finally:
        _interceptor = before
