"""Packs on the disk: what maps need is copied out of the store, and into another one."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from bico.calibration.pack import FILES, INDEX, Pack, exposed
from bico.errors import ConfigError, OutputError
from storage.artefacts import folder_of
from storage.keys import file_digest
from storage.manifest import MANIFEST
from tasks.cached_stage import Workspace

README = "README.md"


def digest_of(identity: Mapping[str, object]) -> str:
    """Of a task's data and of how it is posed."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def files_of(space: Workspace, keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """The files of artefacts with their digests, without the manifests, in which the names of folders of data stand."""
    found = {}
    for key in keys:
        folder = folder_of(space.artefacts.ref(key))
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
        found[key] = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    return found


def write_pack(space: Workspace, pack: Pack, place: Path) -> None:
    """Writes a pack; the folder is there whole or not at all, and one that holds a pack is replaced.

    Raises:
        OutputError: If something else lies there.
    """
    if place.exists() and any(place.iterdir()) and not (place / INDEX).is_file():
        raise OutputError(f"--pack {place} holds something else than a pack: give another folder.")
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for key, files in pack.files.items():
            for name in files:
                file = unfinished / FILES / key / name
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder_of(space.artefacts.ref(key)) / name, file)
        (unfinished / README).write_text(
            "\n\n".join(["# A calibration to go", *exposed(pack)]) + "\n", encoding="utf-8"
        )
        (unfinished / INDEX).write_text(pack.to_json(), encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_pack(place: Path) -> Pack:
    """Reads the index of a pack.

    Raises:
        ConfigError: If there is none, or it is damaged.
    """
    try:
        text = (place / INDEX).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--pack {place} is no pack: give a folder that `bico calibrate --pack` wrote.") from error
    return Pack.parse(text, f"--pack {place}")


def unpack(space: Workspace, pack: Pack, place: Path, keys: Iterable[str]) -> None:
    """Copies artefacts of a pack into the store, if they are not there.

    Raises:
        ConfigError: If files are missing, or are not what the index says.
    """
    for key in keys:
        files = pack.files.get(key)
        if not files:
            raise ConfigError(f"--pack {place} lacks {key}: it is not whole; copy it again.")

        def build(out: Path, key: str = key, files: Mapping[str, str] = files) -> None:
            for name, digest in files.items():
                file = place / FILES / key / name
                if not file.is_file() or file_digest(file) != digest:
                    raise ConfigError(f"--pack {place}: {key}/{name} is missing or damaged; copy the pack again.")
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, out / name)

        space.artefacts.get_or_create(key, build, {"stage": key.rpartition("-")[0], "from": "pack"})
