"""A folder of artefacts, each either complete or not there.

    root/final/<key>/   committed artefacts, each with a MANIFEST.json of sizes and digests
    root/tmp/           artefacts being built
    root/locks/<key>    one lock per key

An artefact is built under tmp/, its manifest is written last, and one rename makes it visible. A killed builder leaves
its folder under tmp/, never under final/. The lock is the kernel's (flock), which lets go when its holder dies; so there
are no stale locks, but a child forked inside `build` keeps the lock until it ends.

This is the backend for one file system. An object store has no rename: there the manifest, put if absent, is the commit.
"""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bico.errors import StoreError
from storage.keys import Ref, checked_key, file_digest

MANIFEST = "MANIFEST.json"
STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class ArtefactStore:
    """Artefacts under one folder; safe to use from many processes at once."""

    root: Path
    durable: bool = True
    """Flush every commit to the disk. Without it a killed process still does no harm, but a power cut may."""
    verify_hits: bool = False
    """Compare digests, not only sizes, before an artefact counts as there."""

    def __post_init__(self) -> None:
        if "://" in str(self.root):
            raise StoreError(f"Artefact store {self.root} is not a folder: only local folders can hold artefacts yet.")
        # Absolute, since references travel to processes with another working directory.
        object.__setattr__(self, "root", Path(self.root).expanduser().absolute())
        with self._writing():
            for name in ("final", "tmp", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        self._sweep()

    def ref(self, key: str) -> Ref:
        """Returns the reference to an artefact, whether or not it is there yet."""
        return Ref(checked_key(key), str(self.root))

    def is_complete(self, key: str) -> bool:
        """Whether an artefact is there with every file at its size; reads no content."""
        return self.fault(key) is None

    def verify(self, key: str) -> bool:
        """Whether an artefact is there with every file as it was written; reads all of it."""
        return self.fault(key, digests=True) is None

    def fault(self, key: str, *, digests: bool = False) -> str | None:
        """Returns what is wrong with an artefact, or None if nothing is."""
        path = self.ref(key).path
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            if manifest["key"] != key:
                return f"its manifest is that of {manifest['key']}"
            files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        except OSError:
            return "it has no manifest"
        except (ValueError, TypeError, KeyError, AttributeError):
            return "its manifest is damaged"
        for name, (size, digest) in files.items():
            try:
                found = os.stat(path / name).st_size
                if found != size:
                    return f"{name} has {found} bytes, not {size}"
                if digests and file_digest(path / name) != digest:
                    return f"{name} is not what was written"
            except (OSError, StoreError):
                return f"{name} cannot be read"
        return None

    def get_or_create(
        self, key: str, build: Callable[[Path], None], meta: Mapping[str, object] | None = None
    ) -> tuple[Ref, bool]:
        """Returns the artefact and whether it was there already; if not, builds it.

        A damaged artefact is discarded and built again. Of several callers at once, one builds and the others wait.

        Arguments:
            key: From `artefact_key`.
            build: Writes the artefact's files into the empty folder it is given. If it raises, nothing is left behind.
            meta: JSON values for the manifest; for people, they do not enter the key.

        Raises:
            StoreError: If the key is no key, the store cannot be written, or `build` left no file, a link, or a file
                under the manifest's name.
        """
        return self.get_or_create_many([key], lambda folders: build(folders[key]), meta)[key]

    def get_or_create_many(
        self, keys: Iterable[str], build: Callable[[dict[str, Path]], None], meta: Mapping[str, object] | None = None
    ) -> dict[str, tuple[Ref, bool]]:
        """Like `get_or_create`, for artefacts that one piece of work makes together.

        Arguments:
            keys: The artefacts wanted.
            build: Called at most once, with an empty folder for each artefact that is missing, and only those.
            meta: JSON values, written into each manifest.

        Returns:
            For each key the artefact and whether it was there already.
        """
        keys = list(dict.fromkeys(keys))
        text = json.dumps(dict(meta or {}))  # before the work, not after it
        missing = self._missing(keys)
        if missing:
            with ExitStack() as held:
                # Everyone takes locks in the same order, so nobody waits in a circle.
                for key in sorted(missing):
                    held.enter_context(self._lock(key))
                missing = self._missing(missing)  # someone else may have built them while we waited
                if missing:
                    self._build(missing, build, json.loads(text))
        return {key: (self.ref(key), key not in missing) for key in keys}

    def discard(self, key: str) -> None:
        """Removes an artefact, complete or not; it disappears in one step."""
        with self._lock(key):
            self._remove(key)

    def _missing(self, keys: list[str]) -> list[str]:
        return [key for key in keys if self.fault(key, digests=self.verify_hits) is not None]

    def _build(self, keys: list[str], build: Callable[[dict[str, Path]], None], meta: dict[str, object]) -> None:
        folders = {key: self._temporary(key) for key in keys}
        try:
            with self._writing():
                for folder in folders.values():
                    folder.mkdir()
            build(dict(folders))
            with self._writing():
                # All manifests before the first rename: a fault in one folder then commits none of them.
                for key, folder in folders.items():
                    self._seal(key, folder, meta)
                for key, folder in folders.items():
                    self._remove(key)  # what is there is damaged, or it would not have been missing
                    folder.rename(self.ref(key).path)
                if self.durable:
                    _flush(self.root / "final")
        finally:
            for folder in folders.values():  # after a commit there is nothing under this name any more
                shutil.rmtree(folder, ignore_errors=True)

    def _seal(self, key: str, folder: Path, meta: dict[str, object]) -> None:
        """Writes the manifest of a finished folder and, if asked to, sees that all of it is on the disk."""
        inside = sorted(folder.rglob("*"))
        files = [path for path in inside if not path.is_dir() or path.is_symlink()]
        if odd := [path for path in files if path.is_symlink() or not path.is_file()]:
            raise StoreError(f"Artefact {key} holds {odd[0].name}, which is not a plain file: copy its content in.")
        if not files:
            raise StoreError(f"Artefact {key} is empty: its build wrote no file into the folder it was given.")
        if (folder / MANIFEST).exists():
            raise StoreError(f"Artefact {key} holds a file named {MANIFEST}, which belongs to the store: rename it.")
        entries = {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_digest(path)}
            for path in files
        }
        manifest = {"format": 1, "key": key, "created": time.time(), "meta": meta, "files": entries}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if self.durable:
            # Together, since file systems join flushes that wait: 25 times faster than one by one on a busy disk.
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(_flush, (*inside, folder / MANIFEST, folder)))

    def _remove(self, key: str) -> None:
        doomed = self._temporary(key)
        with self._writing():
            try:
                self.ref(key).path.rename(doomed)
            except FileNotFoundError:
                return
        shutil.rmtree(doomed, ignore_errors=True)

    def _temporary(self, key: str) -> Path:
        return self.root / "tmp" / f"{key}.{uuid.uuid4().hex}"

    @contextmanager
    def _lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Holds the lock of one key; without `wait`, yields False if somebody else does."""
        with self._writing():
            handle = os.open(self.root / "locks" / checked_key(key), os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)  # lets go of the lock; the file stays, deleting it would let two in at once

    def _sweep(self) -> None:
        """Removes what killed builders left behind."""
        for folder in (self.root / "tmp").iterdir():
            try:
                if time.time() - folder.stat().st_mtime < STALE_SECONDS:
                    continue
                with self._lock(folder.name.rpartition(".")[0], wait=False) as free:
                    if free:  # nobody builds this key, however long a build may take
                        shutil.rmtree(folder, ignore_errors=True)
            except (OSError, StoreError):
                continue  # swept by someone else, not ours, or the store is read-only; none of it stops the work

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(
                f"Artefact store {self.root} cannot be written ({reason}): choose another folder, "
                "or mend its permissions or free space."
            ) from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
