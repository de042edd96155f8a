"""The steps between which a store may be stopped, by name.

A crash shows its damage at the borders of a protocol's steps, so each border is a place that tests can reach: they put
an interceptor there that kills the process or raises the error of a full disk. In use there is none, and passing a
border costs a comparison.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Boundary(StrEnum):
    """In the order in which a store passes them; `gc` passes the last. A folder never passes UPLOADED."""

    MARKED = "marked"
    """The keys are marked as in use; nothing was looked at yet."""
    LOCKED = "locked"
    """This process alone on its machine may build the key."""
    PREPARED = "prepared"
    """Empty folders are there to build in."""
    BUILT = "built"
    """All files are written; none is sealed."""
    SEALED = "sealed"
    """The manifest is written, where nobody looks for it yet."""
    UPLOADED = "uploaded"
    """One file is in the bucket; passed once per file."""
    RETIRED = "retired"
    """The damaged artefact that stood in the way is gone; the new one is not there yet."""
    COMMITTED = "committed"
    """The artefact is there for everyone; passed once per artefact."""
    CONDEMNED = "condemned"
    """`gc` has chosen the key and not yet looked whether it is in use."""


_interceptor: Callable[[Boundary, str], None] | None = None


def passing(boundary: Boundary, key: str) -> None:
    """Tells the interceptor, if there is one, that a key's protocol is at a border."""
    if _interceptor is not None:
        _interceptor(boundary, key)


@contextmanager
def intercepted(interceptor: Callable[[Boundary, str], None]) -> Iterator[None]:
    """Has every border of this process call `interceptor`, for the time of the context; for tests."""
    global _interceptor  # noqa: PLW0603 - one per process, as the processes are what dies
    before, _interceptor = _interceptor, interceptor
    try:
        yield
    finally:
        _interceptor = before
