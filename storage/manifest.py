"""What a finished artefact consists of: names, sizes and digests of its files, written last."""

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from bico.errors import StoreError
from storage.keys import file_digest

MANIFEST = "MANIFEST.json"
FORMAT = 1
_HASHERS = 4  # SHA-256 lets go of the interpreter's lock, so that a few threads share the cores


class FaultError(Exception):
    """What is wrong with an artefact, in words; stays inside the store, where it means "not there"."""


@dataclass(frozen=True)
class Entry:
    """One file."""

    size: int
    """Bytes."""
    sha256: str
    e_tag: str | None = None
    """The bucket's own name for these bytes; none in a folder."""


@dataclass(frozen=True)
class Manifest:
    """What is written last; an artefact without it is not there."""

    key: str
    files: Mapping[str, Entry]
    """By path inside the artefact, with `/`."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """For people; does not enter the key."""
    created: float = 0.0
    """Seconds since 1970, by the clock of whoever wrote it: for people and for `gc` by age, never for correctness."""
    attempt: str = ""
    """In a bucket, the folder of the attempt that won; empty in a folder."""

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files.values())

    def to_bytes(self) -> bytes:
        files = {
            name: {k: v for k, v in vars(entry).items() if v is not None} for name, entry in sorted(self.files.items())
        }
        content = {"format": FORMAT, "key": self.key, "created": self.created, "meta": dict(self.meta), "files": files}
        return json.dumps(content | ({"attempt": self.attempt} if self.attempt else {}), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, key: str) -> "Manifest":
        """Reads a manifest.

        Raises:
            FaultError: If it is damaged, or that of another key.
        """
        try:
            found = json.loads(content)
            if found["format"] != FORMAT:
                raise FaultError(f"its manifest is of format {found['format']}, and this version reads {FORMAT}")
            if found["key"] != key:
                raise FaultError(f"its manifest is that of {found['key']}")
            files = {}
            for name, entry in found["files"].items():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts:
                    raise FaultError(f"its manifest lists {name}, which lies outside of it")
                files[name] = Entry(int(entry["size"]), str(entry["sha256"]), entry.get("e_tag"))
            if not files:
                raise ValueError("no files")
            return cls(key, files, found["meta"], float(found["created"]), str(found.get("attempt", "")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FaultError("its manifest is damaged") from error

    def with_tags(self, tags: Mapping[str, str | None], attempt: str) -> "Manifest":
        """Returns the manifest of an uploaded artefact."""
        files = {name: replace(entry, e_tag=tags[name]) for name, entry in self.files.items()}
        return replace(self, files=files, attempt=attempt)


def seal(key: str, folder: Path, meta: Mapping[str, Any]) -> Manifest:
    """Lists the files of a finished folder and writes the list into it.

    Raises:
        StoreError: If there is no file, one that is not plain, or one under the manifest's name.
    """
    inside = sorted(folder.rglob("*"))
    files = [path for path in inside if not path.is_dir() or path.is_symlink()]
    if odd := [path for path in files if path.is_symlink() or not path.is_file()]:
        raise StoreError(f"Artefact {key} holds {odd[0].name}, which is not a plain file: copy its content in.")
    if not files:
        raise StoreError(f"Artefact {key} is empty: its build wrote no file into the folder it was given.")
    if (folder / MANIFEST).exists():
        raise StoreError(f"Artefact {key} holds a file named {MANIFEST}, which belongs to the store: rename it.")
    names = [path.relative_to(folder).as_posix() for path in files]
    manifest = Manifest(
        key,
        {name: Entry(os.stat(folder / name).st_size, digest) for name, digest in _digests(folder, names)},
        meta,
        time.time(),
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    return manifest


def look(folder: Path, manifest: Manifest) -> tuple:
    """Compares a folder's files with their sizes, reading no content.

    Returns:
        A stamp that changes when a file is replaced or written to.

    Raises:
        FaultError: The first file that is missing or has another size.
    """
    stamp = []
    for name, entry in manifest.files.items():
        try:
            found = os.stat(folder / name)
        except OSError as error:
            raise FaultError(f"{name} cannot be read") from error
        if found.st_size != entry.size:
            raise FaultError(f"{name} has {found.st_size} bytes, not {entry.size}")
        stamp.append((found.st_ino, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(stamp)


def read_through(folder: Path, manifest: Manifest) -> None:
    """Compares a folder's files with their digests, reading all of them.

    Raises:
        FaultError: The first file that is not what was written.
    """
    try:
        for name, digest in _digests(folder, list(manifest.files)):
            if digest != manifest.files[name].sha256:
                raise FaultError(f"{name} is not what was written")
    except StoreError as error:
        raise FaultError(str(error)) from error


def _digests(folder: Path, names: list[str]) -> list[tuple[str, str]]:
    with ThreadPoolExecutor(_HASHERS) as pool:
        return list(zip(names, pool.map(lambda name: file_digest(folder / name), names), strict=True))
