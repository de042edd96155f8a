"""Artefacts in a folder of this machine, or of a file system that machines share.

    final/<key>/   committed artefacts, each with its MANIFEST.json
    tmp/           artefacts being built, or being deleted
    locks/<key>    one lock per key
    marks/         the leases of living processes
    notes/         records of runs

The commit is one rename of a folder that is complete, manifest included. A killed builder leaves its folder under tmp/,
never under final/.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from bico.errors import StoreError
from storage.fault_points import FaultPoint, reach
from storage.keys import checked_key
from storage.leases import LEASES, Leases
from storage.locks import flush, locked, remove_free
from storage.manifest import MANIFEST, FaultError, Manifest, look

STALE_SECONDS = 24 * 3600
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class FolderBackend:
    """See `storage.backend.Backend`."""

    vouches = False  # a file system does not notice a bit that flips

    def __init__(self, root: Path, durable: bool) -> None:
        # Absolute, since references travel to processes with another working directory.
        self.root = self.staging = root.expanduser().absolute()
        self.url = str(self.root)
        self._durable = durable
        with writing(self.url):
            for name in ("final", "tmp", "locks", LEASES, "notes"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        self._leases = Leases(self.root / LEASES)

    def place(self, key: str) -> Path:
        return self.root / "final" / checked_key(key)

    def look(self, key: str) -> Manifest:
        folder = self.place(key)
        try:
            content = (folder / MANIFEST).read_bytes()
        except OSError as error:
            raise FaultError("it has no manifest") from error
        manifest = Manifest.from_bytes(content, key)
        look(folder, manifest)
        return manifest

    def commit(self, finished: Mapping[str, tuple[Path, Manifest]]) -> None:
        with writing(self.url):
            for key, (folder, _) in finished.items():
                self._flush_all(folder)
                if self.place(key).exists():
                    self.remove(key)  # damaged, or this one would not have been built
                    reach(FaultPoint.REMOVED, key)
                folder.rename(self.place(key))
                reach(FaultPoint.COMMITTED, key)
            if self._durable:
                flush(self.root / "final")

    def open(self, manifest: Manifest, again: bool) -> Path:
        return self.place(manifest.key)

    def remove(self, key: str, unless_leased: bool = False) -> bool:
        doomed = self.staging / "tmp" / f"{key}.{uuid.uuid4().hex}"
        with writing(self.url):
            with self._leases.frozen() if unless_leased else nullcontext(()) as leased:
                if key in leased:
                    return False
                try:
                    self.place(key).rename(doomed)
                except FileNotFoundError:
                    return True
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def listed(self) -> Iterator[str]:
        for folder in sorted((self.root / "final").iterdir()):
            with suppress(StoreError):  # a stranger's file
                yield checked_key(folder.name)

    def lease(self, keys: Iterable[str]) -> None:
        try:
            self._leases.add(keys)
        except OSError as error:
            # Who may not write here can still read; only somebody who may write can delete, and is asked to wait.
            if error.errno not in _READ_ONLY:
                raise StoreError(f"Artefact store {self.url} cannot note what is in use ({error.strerror}).") from error

    def leased(self) -> set[str]:
        with writing(self.url), self._leases.frozen() as leased:
            return leased

    def write_note(self, name: str, content: bytes) -> None:
        unfinished = self.staging / "tmp" / f"{name}.{uuid.uuid4().hex}"
        with writing(self.url):
            unfinished.write_bytes(content)
            unfinished.replace(self.root / "notes" / checked_key(name))

    def notes(self) -> dict[str, Callable[[], bytes]]:
        return {path.name: path.read_bytes for path in sorted((self.root / "notes").iterdir())}

    def delete_note(self, name: str) -> None:
        with writing(self.url):
            (self.root / "notes" / checked_key(name)).unlink(missing_ok=True)

    def sweep(self) -> None:
        sweep(self.staging)

    def sweep_locks(self) -> None:
        with writing(self.url):
            remove_free(self.staging / "locks", set(self.listed()))

    def sweep_lost(self) -> None:
        """A rename leaves no file behind that belongs to nothing."""

    def _flush_all(self, folder: Path) -> None:
        if self._durable:
            # Together, since file systems join flushes that wait: 25 times faster than one by one on a busy disk.
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(flush, (*folder.rglob("*"), folder)))


def sweep(staging: Path) -> None:
    """Deletes what killed builders left in a staging folder."""
    for folder in (staging / "tmp").iterdir():
        try:
            if time.time() - folder.stat().st_mtime < STALE_SECONDS:
                continue
            with locked(staging / "locks" / checked_key(folder.name.rpartition(".")[0]), wait=False) as free:
                if free:  # nobody builds this key, however long a build may take
                    shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        except (OSError, StoreError):
            continue  # swept by someone else, not ours, or the store is read-only; none of it stops the work


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Says of which store it was that a file could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno) if error.errno else error
        raise StoreError(
            f"Artefact store {url} cannot be written ({reason}): choose another folder, "
            "or mend its permissions or free space."
        ) from error
