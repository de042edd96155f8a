"""Artefacts in a bucket, of any provider that has conditional puts (`storage.providers`).

    prefix/manifests/<key>.json        the commit
    prefix/data/<key>/<attempt>/<file> the files of one attempt at building it
    prefix/marks/<process>             the leases of a living process, renewed while it lives
    prefix/notes/<name>                records of runs

A bucket has no rename and no lock. A builder uploads its files under a name of its own and then puts the manifest if
there is none; if there is one by then, the other was faster and ours is dropped. A damaged one is replaced if it is still
the one that was looked at. So a manifest never points to files that are not all there.

Files are recorded with the tags that the bucket gave them: a file that was replaced has another tag, which a listing
shows. Reading goes through a copy on this machine, whose digests are compared.
"""

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

from bico.errors import ConnectionLostError, StoreError
from storage.fault_points import FaultPoint, reach
from storage.folder import STALE_SECONDS, sweep
from storage.heartbeat import LIFETIME, Heartbeat
from storage.keys import checked_key
from storage.leases import LEASES
from storage.locks import locked, remove_free
from storage.manifest import FaultError, Manifest, look
from storage.providers import connect, provider_of

if TYPE_CHECKING:
    from obstore import ObjectMeta, UpdateVersion
    from obstore.store import ObjectStore

_UPLOADS = 8
_CLOCK = f"{LEASES}/.clock"  # written to learn what time the bucket thinks it is


class BucketBackend:
    """See `storage.backend.Backend`.

    Credentials come from the provider's usual variables, never from the address.
    """

    vouches = True

    def __init__(self, url: str, staging: Path | None) -> None:
        parts = urlsplit(url)
        self._provider = provider_of(url)
        if "@" in parts.netloc:
            raise StoreError(
                f"Artefact store {parts.scheme}://***: keep keys out of the address; set {self._provider.keys}."
            )
        if not parts.netloc:
            raise StoreError(f"Artefact store {url} names no bucket: write {self._provider.example}.")
        self.url = f"{parts.scheme}://{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
        self.staging = (staging or _default_staging(self.url)).expanduser().absolute()
        for name in ("tmp", "locks", "copies"):
            (self.staging / name).mkdir(parents=True, exist_ok=True)
        self._owner = 0
        self._client: ObjectStore | None = None
        self._mine: dict[str, None] = {}
        with self._talking():
            self._list("manifests/", limit=1)  # an address that does not answer is found out here

    @property
    def _store(self) -> "ObjectStore":
        # A client's threads do not survive a fork: each process has its own.
        if self._client is None or self._owner != os.getpid():
            self._client = connect(self.url)
            self._owner, self._mine = os.getpid(), {}
            self._lease_name = f"{LEASES}/{uuid.uuid4().hex}"
            self._heart = Heartbeat(self._beat)
        return self._client

    def look(self, key: str) -> Manifest:
        with self._talking():
            manifest = self._manifest(key)
            there = {item["path"]: item for item in self._list(f"data/{key}/{manifest.attempt}/")}
        for name, entry in manifest.files.items():
            found = there.get(f"data/{key}/{manifest.attempt}/{name}")
            if found is None:
                raise FaultError(f"{name} cannot be read")
            if found["size"] != entry.size:
                raise FaultError(f"{name} has {found['size']} bytes, not {entry.size}")
            if not _same_tag(found["e_tag"], entry.e_tag):
                raise FaultError(f"{name} is not what was written")
        return manifest

    def commit(self, finished: Mapping[str, tuple[Path, Manifest]]) -> None:
        with self._talking():
            for key, (folder, manifest) in finished.items():
                attempt = uuid.uuid4().hex
                committed = self._upload(key, folder, manifest, attempt)
                if self._publish(committed):
                    reach(FaultPoint.COMMITTED, key)
                    with suppress(OSError):  # what was just built is the first copy; without it one is fetched
                        folder.rename(self._copy(committed))
                else:
                    self._delete_attempt(committed)

    def open(self, manifest: Manifest, again: bool) -> Path:
        copy = self._copy(manifest)
        with self._talking(), locked(self.staging / "locks" / f"{manifest.key}.copy"):
            if again:
                shutil.rmtree(copy, ignore_errors=True)
            try:
                look(copy, manifest)
            except FaultError:
                shutil.rmtree(copy, ignore_errors=True)
                self._download(manifest, copy)
        return copy

    def remove(self, key: str, unless_leased: bool = False) -> bool:
        with self._talking():
            try:
                manifest = self._get(_manifest_name(checked_key(key)))
            except FileNotFoundError:
                manifest = None
            if unless_leased and key in self.leased():
                return False
            if manifest is None:
                return True  # an attempt that nobody finished is for `sweep_lost`
            obstore.delete(self._store, _manifest_name(key))
            # Whoever leased before this looked before it too, and may want the files; whoever leases now finds nothing.
            if unless_leased and key in self.leased():
                with suppress(AlreadyExistsError):
                    obstore.put(self._store, _manifest_name(key), manifest, mode="create")
                return False
            with suppress(FaultError):
                self._delete_attempt(Manifest.from_bytes(manifest, key))
            return True

    def listed(self) -> Iterator[str]:
        with self._talking():
            found = sorted(item["path"] for item in self._list("manifests/"))
        for path in found:
            with suppress(StoreError):  # a stranger's file
                yield checked_key(path.removeprefix("manifests/").removesuffix(".json"))

    def lease(self, keys: Iterable[str]) -> None:
        with self._talking():
            _ = self._store  # after a fork, the leases of the parent are not ours
            self._mine |= dict.fromkeys(keys)
        self._beat()
        self._heart.start()

    def _beat(self) -> None:
        with self._talking():
            self._put(self._lease_name, "\n".join(list(self._mine)).encode())

    def leased(self) -> set[str]:
        used: set[str] = set()
        with self._talking():
            now = self._now()
            for item in self._list(f"{LEASES}/"):
                if item["path"] == _CLOCK:
                    continue
                # Both times are the bucket's: no clock of ours is asked.
                if now - item["last_modified"] > LIFETIME:
                    obstore.delete(self._store, item["path"])
                    continue
                with suppress(FileNotFoundError):  # its process ended meanwhile
                    used.update(self._get(item["path"]).decode().split())
        return used

    def write_note(self, name: str, content: bytes) -> None:
        with self._talking():
            self._put(f"notes/{checked_key(name)}", content)

    def notes(self) -> dict[str, Callable[[], bytes]]:
        with self._talking():
            names = sorted(item["path"] for item in self._list("notes/"))
        return {name.removeprefix("notes/"): partial(self._get, name) for name in names}

    def delete_note(self, name: str) -> None:
        with self._talking():
            obstore.delete(self._store, f"notes/{checked_key(name)}")

    def sweep(self) -> None:
        sweep(self.staging)

    def sweep_locks(self) -> None:
        there = set(self.listed())
        with self._talking():
            remove_free(self.staging / "locks", there | {f"{key}.copy" for key in there})

    def sweep_lost(self) -> None:
        """Also this machine's copies of what others have deleted or replaced."""
        named: dict[str, str | None] = {}

        def is_named(key: str, attempt: str) -> bool:
            if key not in named:
                try:
                    named[key] = self._manifest(key).attempt
                except FaultError:
                    named[key] = None
            return attempt == named[key]

        with self._talking():
            now, doomed = self._now(), []
            for item in self._list("data/"):
                _, key, attempt, *_ = item["path"].split("/")
                if (now - item["last_modified"]).total_seconds() >= STALE_SECONDS and not is_named(key, attempt):
                    doomed.append(item["path"])
            if doomed:
                obstore.delete(self._store, doomed)
            used = self.leased()
            for copy in (self.staging / "copies").iterdir():
                key, _, attempt = copy.name.rpartition(".")
                old = time.time() - copy.stat().st_mtime >= STALE_SECONDS
                if old and key not in used and not is_named(key, attempt):
                    shutil.rmtree(copy, ignore_errors=True)

    def _manifest(self, key: str) -> Manifest:
        try:
            content = self._get(_manifest_name(checked_key(key)))
        except FileNotFoundError as error:
            raise FaultError("it has no manifest") from error
        manifest = Manifest.from_bytes(content, key)
        if not manifest.attempt:
            raise FaultError("its manifest is damaged")
        return manifest

    def _upload(self, key: str, folder: Path, manifest: Manifest, attempt: str) -> Manifest:
        def put(name: str) -> tuple[str, str | None]:
            result = obstore.put(self._store, f"data/{key}/{attempt}/{name}", folder / name)
            reach(FaultPoint.UPLOADED, key)
            return name, result["e_tag"]

        _ = self._store  # made by one thread
        with ThreadPoolExecutor(_UPLOADS) as pool:
            tags = dict(pool.map(put, manifest.files))
        return manifest.with_tags(tags, attempt)

    def _publish(self, manifest: Manifest) -> bool:
        """Puts a manifest where there is none, or only a damaged one; whether it is now ours that is there."""
        key, name = manifest.key, _manifest_name(manifest.key)
        while True:
            try:
                obstore.put(self._store, name, manifest.to_bytes(), mode="create")
                return True
            except AlreadyExistsError:
                pass
            try:
                there = obstore.get(self._store, name)
                version, content = _version(there.meta), bytes(there.bytes())
                if content == manifest.to_bytes():
                    return True  # our own: the answer to an earlier put was lost on the way, and it was sent again
                self.look(key)
            except FileNotFoundError:
                continue  # gone meanwhile
            except FaultError:
                reach(FaultPoint.REMOVED, key)
            else:
                return False
            try:
                obstore.put(self._store, name, manifest.to_bytes(), mode=version)
            except (PreconditionError, FileNotFoundError):
                continue  # somebody else has replaced or removed it
            with suppress(FaultError):  # of a manifest that cannot be read, `sweep_lost` deletes the files
                self._delete_attempt(Manifest.from_bytes(content, key))
            return True

    def _download(self, manifest: Manifest, copy: Path) -> None:
        key = manifest.key
        unfinished = self.staging / "tmp" / f"{key}.{uuid.uuid4().hex}"

        def get(name: str) -> None:
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as file:
                    for chunk in obstore.get(self._store, f"data/{key}/{manifest.attempt}/{name}"):
                        file.write(chunk)
            except FileNotFoundError as error:
                raise FaultError(f"{name} cannot be read") from error

        try:
            _ = self._store  # made by one thread
            with ThreadPoolExecutor(_UPLOADS) as pool:
                list(pool.map(get, manifest.files))
            unfinished.rename(copy)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _copy(self, manifest: Manifest) -> Path:
        return self.staging / "copies" / f"{manifest.key}.{checked_key(manifest.attempt)}"

    def _now(self) -> datetime:
        self._put(_CLOCK, b"")
        return obstore.head(self._store, _CLOCK)["last_modified"]

    def _list(self, prefix: str, limit: int | None = None) -> "list[ObjectMeta]":
        found: list[ObjectMeta] = []
        for batch in obstore.list(self._store, prefix):
            found += batch
            if limit and len(found) >= limit:
                break
        return found

    def _put(self, name: str, content: bytes) -> None:
        obstore.put(self._store, name, content)

    def _get(self, name: str) -> bytes:
        return bytes(obstore.get(self._store, name).bytes())

    def _delete_attempt(self, manifest: Manifest) -> None:
        if not manifest.attempt:
            return
        if doomed := [item["path"] for item in self._list(f"data/{manifest.key}/{manifest.attempt}/")]:
            obstore.delete(self._store, doomed)
        shutil.rmtree(self._copy(manifest), ignore_errors=True)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)[:300]
            kind = ConnectionLostError if _is_silence(error) else StoreError
            raise kind(
                f"Artefact store {self.url} refused ({reason}): check the address, {self._provider.settings}, and that "
                "the bucket exists and can be written."
            ) from error


def _same_tag(listed: str | None, given: str | None) -> bool:
    """Whether two tags are of the same bytes; some providers quote them in one answer and not in the other."""
    return listed is not None and given is not None and listed.strip('"') == given.strip('"')


def _version(meta: "ObjectMeta") -> "UpdateVersion":
    """What a put must find there, in the provider's words: some go by the tag, some by a number."""
    version: UpdateVersion = {}
    if meta["e_tag"] is not None:
        version["e_tag"] = meta["e_tag"]
    if meta["version"] is not None:
        version["version"] = meta["version"]
    return version


def _is_silence(error: Exception) -> bool:
    """Whether nobody answered, as against an answer that is a refusal."""
    return isinstance(error, GenericError) and any(
        words in str(error) for words in ("error sending request", "Connect", "timed out", "request or response body")
    )


def _manifest_name(key: str) -> str:
    return f"manifests/{key}.json"


def _default_staging(url: str) -> Path:
    cache = os.environ.get("BICO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bico"
    return Path(cache) / hashlib.sha256(url.encode()).hexdigest()[:16]
