"""Releases of a base model: folders below one folder, or the revision that a model hub shows now.

path/to/folder    every folder in it that holds a model is a release, in the order of their names
hf:ORG/NAME       the newest revision of a repository on Hugging Face's hub, downloaded by its commit
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bico.errors import CheckpointError, ConfigError, one_line
from bico.models.families import HUB as SCHEME
from bico.models.families import recognised

HUB = f"{SCHEME}:"


@dataclass(frozen=True)
class Release:
    """A base model that came out."""

    name: str
    folder: Path


def releases_at(place: str, cache: Path, download: Callable[[str, Path], Release] | None = None) -> list[Release]:
    """Returns the releases at a place, oldest first.

    Arguments:
        place: A folder of releases, or `hf:ORG/NAME`.
        cache: Where downloads go.
        download: Fetches the newest revision of a repository; `newest_on_hub` if None.

    Raises:
        ConfigError: If there is no such folder.
        CheckpointError: If the hub cannot be asked.
    """
    if place.startswith(HUB):
        return [(download or newest_on_hub)(place.removeprefix(HUB), cache)]
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"releases: {place} is no folder: give one whose sub-folders are models, or hf:ORG/NAME.")
    found = [path for path in folder.iterdir() if path.is_dir() and recognised(path) is not None]
    return [Release(path.name, path) for path in sorted(found, key=lambda path: natural(path.name))]


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by value.

    Example:
        >>> sorted(["v10", "v9", "v9.1"], key=natural)
        ['v9', 'v9.1', 'v10']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def newest_on_hub(repository: str, cache: Path) -> Release:
    """Downloads the newest revision of a repository, pinned by its commit; what is there already is not fetched again.

    Raises:
        CheckpointError: If the hub has no such repository, or does not answer.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    name = repository.rpartition("/")[2]
    try:
        revision = HfApi().model_info(repository).sha or ""
        folder = cache / name / revision
        if not folder.exists():
            unfinished = folder.with_name(f".{revision}")
            patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]  # no pickles, no code
            snapshot_download(repository, revision=revision, local_dir=unfinished, allow_patterns=patterns)
            unfinished.rename(folder)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = one_line(error, 200)
        raise CheckpointError(
            f"releases: {HUB}{repository} cannot be had ({reason}): check the name and the connection."
        ) from error
    return Release(f"{name}@{revision[:12]}", folder)
