"""Leases: which keys living processes use, in a folder that they share. `gc` spares what is leased."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import finalize

from storage.locks import locked, take

# The names on disk and in buckets are older than the words: processes of an older version and of this one, with one
# store, have to see each other's leases.
LEASES = "marks"
_LOCK = ".gate"


class Leases:
    """The leases in one folder.

    Each process keeps one file there, locked for as long as it lives, to which it adds the keys it uses. Whoever wants
    to delete holds the lease lock alone while it reads the files that are still locked, and deletes; whoever leases
    holds it together with others that do. So a lease is seen by every later deletion, and a deletion by every later look.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = folder / _LOCK
        self._owner = 0
        self._handle = -1

    def add(self, keys: Iterable[str]) -> None:
        """Leases keys until this process ends, or this object does."""
        with locked(self._lock, shared=True):
            if self._owner != os.getpid():  # the first lease, or the first one after a fork
                self._handle = os.open(
                    self._folder / uuid.uuid4().hex, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644
                )
                take(self._handle, wait=True)
                self._owner = os.getpid()
                finalize(self, _close, self._handle, self._owner)
            os.write(self._handle, "".join(f"{key}\n" for key in keys).encode())

    @contextmanager
    def frozen(self) -> Iterator[set[str]]:
        """Lets nobody lease for the time of the context; yields the keys that are leased."""
        with locked(self._lock):
            yield self._read()

    def _read(self) -> set[str]:
        leased: set[str] = set()
        for file in self._folder.iterdir():
            if file == self._lock:
                continue
            handle = os.open(file, os.O_RDWR)
            try:
                if take(handle, wait=False):  # its process is dead
                    with suppress(FileNotFoundError):
                        file.unlink()
                else:
                    leased.update(file.read_text(encoding="utf-8").split())
            finally:
                os.close(handle)
        return leased


def _close(handle: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has an open file of its own under that number, or will have one
        os.close(handle)
