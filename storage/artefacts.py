"""Artefacts that are either complete or not there, in a folder or in a bucket.

An artefact is built in a folder of this machine. Its manifest of sizes and digests is written last, and one step of the
backend makes it visible: a rename in a folder (`storage.folder`), a put-if-absent of the manifest in a bucket
(`storage.bucket`). A reader gets a folder whose files have been compared with their digests, once per process and
again when a file was touched; what does not agree counts as absent and is made again.

Of several processes of one machine, one builds and the others wait. Of several machines with one bucket, each may
build, and the first to finish wins: the key says all that determines the content, so it does not matter which.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bico.errors import StoreError
from storage.backend import Backend
from storage.fault_points import FaultPoint, reach
from storage.folder import FolderBackend, writing
from storage.keys import Ref, checked_key
from storage.locks import locked
from storage.manifest import FaultError, Manifest, look, read_through, seal
from storage.providers import PLACES, PROVIDERS


class ArtefactStore:
    """Artefacts at one address; safe to use from many processes at once.

    Arguments:
        url: A folder, `file:` and a folder, or a bucket, such as `s3://bucket/prefix` (`storage.providers`).
        durable: Flush every commit to the disk. Without it a killed process still does no harm, but a power cut may.
        staging: For a bucket, the folder of this machine to build in and to keep copies; chosen by the address if None.

    Raises:
        StoreError: If the address is none of these, or the place cannot be written.
    """

    def __init__(self, url: str | Path, *, durable: bool = True, staging: Path | None = None) -> None:
        self.backend = _backend(str(url), durable, staging)
        self.url = self.backend.url
        self._used: dict[str, None] = {}  # leased by this store; in order of first use
        self._sound: dict[str, tuple] = {}  # what this store has read through, and a stamp of its files then
        self._uses: list[set[str]] = []
        self.backend.sweep()

    def ref(self, key: str) -> Ref:
        """Returns the reference to an artefact, whether or not it is there yet."""
        return Ref(checked_key(key), self.url)

    def is_complete(self, key: str) -> bool:
        """Whether an artefact is there with all it was written with; reads it through on its first use."""
        return self.fault(key) is None

    def fault(self, key: str, *, again: bool = False) -> str | None:
        """Returns what is wrong with an artefact, or None if nothing is.

        Arguments:
            again: Read it through even if this store has done so.
        """
        self._lease([key])
        try:
            manifest = self.backend.look(key)
            if again or not self.backend.vouches:
                self._read_through(manifest, again)
        except FaultError as fault:
            self._sound.pop(key, None)
            return str(fault)
        return None

    def folder(self, key: str) -> Path:
        """Returns a folder of this machine with an artefact's files, as they were written; for reading only.

        Raises:
            StoreError: If it is not there or is damaged; it is then removed, so that the next run makes it again.
        """
        self._lease([key])
        try:
            return self._read_through(self.backend.look(key))
        except FaultError:
            self._sound.pop(key, None)
        try:
            # It may just have been replaced, or only the copy on this machine was damaged.
            return self._read_through(self.backend.look(key), again=True)
        except FaultError as fault:
            self._remove_damaged(key)
            raise StoreError(
                f"Artefact {key} in {self.url} cannot be used ({fault}): run again, it will be made again."
            ) from fault

    def get_or_create(
        self, key: str, build: Callable[[Path], None], meta: Mapping[str, object] | None = None
    ) -> tuple[Ref, bool]:
        """Returns the artefact and whether it was there already; if not, builds it.

        A damaged artefact is replaced. Of several callers on a machine, one builds and the others wait.

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
        self._lease(keys)
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
        """Removes an artefact, complete or not; it disappears in one step. Who collects what is used (`uses`) is not told of it
        any more: a run that had it for a means does not need it.
        """
        with self._lock(checked_key(key)):
            self.backend.remove(key)
        for used in self._uses:
            used.discard(key)

    @contextmanager
    def uses(self) -> Iterator[set[str]]:
        """Collects the keys that this store is asked for during the context."""
        used: set[str] = set()
        self._uses.append(used)
        try:
            yield used
        finally:
            self._uses.remove(used)

    def _lease(self, keys: Iterable[str]) -> None:
        keys = [checked_key(key) for key in keys]
        for used in self._uses:
            used.update(keys)
        if new := [key for key in keys if key not in self._used]:
            self.backend.lease(new)
            self._used |= dict.fromkeys(new)
        self._reach(FaultPoint.LEASED, keys)

    def _missing(self, keys: list[str]) -> list[str]:
        return [key for key in keys if self.fault(key) is not None]

    def _read_through(self, manifest: Manifest, again: bool = False) -> Path:
        folder = self.backend.open(manifest, again)
        stamp = manifest, look(folder, manifest)
        if again or self._sound.get(manifest.key) != stamp:
            read_through(folder, manifest)
            self._sound[manifest.key] = stamp
        return folder

    def _remove_damaged(self, key: str) -> None:
        """Removes what was found damaged, unless it has been made again meanwhile."""
        with suppress(StoreError):  # nobody can mend a store that is only for reading
            with self._lock(key):
                if self.fault(key, again=True) is not None:
                    self.backend.remove(key)

    def _build(self, keys: list[str], build: Callable[[dict[str, Path]], None], meta: dict[str, object]) -> None:
        folders = {key: self.backend.staging / "tmp" / f"{key}.{uuid.uuid4().hex}" for key in keys}
        try:
            with writing(self.url):
                for folder in folders.values():
                    folder.mkdir()
            self._reach(FaultPoint.PREPARED, keys)
            build(dict(folders))
            self._reach(FaultPoint.BUILT, keys)
            with writing(self.url):
                # All manifests before the first commit: a fault in one folder then commits none of them.
                manifests = {key: seal(key, folder, meta) for key, folder in folders.items()}
                self._reach(FaultPoint.SEALED, keys)
            self.backend.commit({key: (folder, manifests[key]) for key, folder in folders.items()})
        finally:
            for folder in folders.values():  # after a commit there is nothing under this name any more
                shutil.rmtree(folder, ignore_errors=True)

    def _reach(self, point: FaultPoint, keys: list[str]) -> None:
        with writing(self.url):
            for key in keys:
                reach(point, key)

    @contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        with ExitStack() as held:
            with writing(self.url):
                held.enter_context(locked(self.backend.staging / "locks" / key))
                reach(FaultPoint.LOCKED, key)
            yield


@cache
def open_store(url: str) -> ArtefactStore:
    """Opens a store once per process."""
    return ArtefactStore(url)


def folder_of(ref: Ref) -> Path:
    """Returns a folder of this machine with an artefact's files, compared with their digests on first use; for reading.

    Raises:
        StoreError: If the artefact is not there, or is damaged.
    """
    return open_store(ref.root).folder(ref.key)


def _backend(url: str, durable: bool, staging: Path | None) -> Backend:
    scheme = urlsplit(url).scheme
    if scheme in PROVIDERS:
        from storage.bucket import BucketBackend  # loads the clients of buckets, which a folder does without

        return BucketBackend(url, staging)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"Artefact store {url} names the machine {parts.netloc!r}: write file:///path.")
        return FolderBackend(Path(unquote(parts.path)), durable)
    if "://" in url:
        raise StoreError(f"Artefact store {url}: give {PLACES}.")
    return FolderBackend(Path(url), durable)
