"""Locks that end with their holder.

All of them are the kernel's (flock): it lets go when the last process that holds the open file has died, however it
died, so there are no stale locks. A child forked by the holder keeps the lock too, until it ends.
"""

import fcntl
import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Holds a lock file; without `wait`, yields False if somebody else does.

    The file stays when it is let go: others may be waiting for it. Only `remove_free` deletes it.
    """
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            held = take(handle, wait=wait, shared=shared)
            if held and not _lies_at(handle, path):
                continue  # deleted while we waited: whoever comes next locks another file of that name, and so must we
            yield held
            return
        finally:
            os.close(handle)


def remove_free(folder: Path, spare: Container[str]) -> None:
    """Deletes the lock files that nobody holds, except those named in `spare`.

    A file is deleted by who holds it, alone. So nobody else is inside, and whoever waits for it sees, when they get it, that
    it lies there no more, and takes the next one (`locked`); one that is held is never deleted.
    """
    for path in folder.iterdir():
        if path.name not in spare and path.is_file():
            with locked(path, wait=False) as free:
                if free:
                    path.unlink()


def _lies_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


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
