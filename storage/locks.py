"""Locks that end with their holder.

All of them are the kernel's (flock): it lets go when the last process that holds the open file has died, however it
died, so there are no stale locks. A child forked by the holder keeps the lock too, until it ends.
"""

import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import finalize


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Holds a lock file; without `wait`, yields False if somebody else does.

    The file stays: deleting it would let two in at once.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        yield _lock(handle, wait=wait, shared=shared)
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool, shared: bool = False) -> bool:
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


class Marks:
    """Which keys living processes use, in a folder that they share.

    Each process keeps one file there, locked for as long as it lives, to which it adds the keys it uses. Whoever wants
    to delete closes the gate, reads the files that are still locked, deletes, and opens the gate again; whoever marks
    passes the gate first. So a mark is seen by every later deletion, and a deletion by every later look.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gate = folder / ".gate"
        self._owner = 0
        self._handle = -1

    def add(self, keys: Iterable[str]) -> None:
        with locked(self._gate, shared=True):
            if self._owner != os.getpid():  # the first mark, or the first one after a fork
                self._handle = os.open(
                    self._folder / uuid.uuid4().hex, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644
                )
                _lock(self._handle, wait=True)
                self._owner = os.getpid()
                finalize(self, _close, self._handle, self._owner)
            os.write(self._handle, "".join(f"{key}\n" for key in keys).encode())

    @contextmanager
    def closed(self) -> Iterator[set[str]]:
        """Lets nobody mark for the time of the context; yields the keys in use."""
        with locked(self._gate):
            yield self._read()

    def _read(self) -> set[str]:
        used: set[str] = set()
        for file in self._folder.iterdir():
            if file == self._gate:
                continue
            handle = os.open(file, os.O_RDWR)
            try:
                if _lock(handle, wait=False):  # its process is dead
                    with suppress(FileNotFoundError):
                        file.unlink()
                else:
                    used.update(file.read_text().split())
            finally:
                os.close(handle)
        return used


def _close(handle: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has an open file of its own under that number, or will have one
        os.close(handle)
