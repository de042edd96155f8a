"""Locks that end with their holder.

All of them are the kernel's (flock): it lets go when the last process that holds the open file has died, however it
died, so there are no stale locks. A child forked by the holder keeps the lock too, until it ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Holds a lock file; without `wait`, yields False if somebody else does.

    The file stays: deleting it would let two in at once.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        yield take(handle, wait=wait, shared=shared)
    finally:
        os.close(handle)


def take(handle: int, *, wait: bool, shared: bool = False) -> bool:
    """Locks an open file until it is closed; without `wait`, returns False if somebody else holds it."""
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(handle, mode)
    except BlockingIOError:
        return False
    return True


def flush(path: Path) -> None:
    """Sees that a file's content, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
