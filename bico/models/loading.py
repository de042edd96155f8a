"""From a model reference to a loaded model, whatever its family (`bico.models.families`).

zoo:NAME                  a mini model shipped with the project
hf:OWNER/NAME[@REVISION]  a model of the Hugging Face hub, downloaded
hf-hub:OWNER/NAME         the same, as open_clip spells it
SCHEME:...                what a family calls its own, such as open_clip:ARCH/TAG
path/to/folder            a folder in a family's format; local-dir:path/to/folder, as open_clip spells it
"""

from dataclasses import replace
from pathlib import Path

import torch

from bico.errors import BicoError, CheckpointError, ConfigError, UnknownModelError, nearest, one_line
from bico.models import zoo
from bico.models.families import (
    HUB,
    HUB_TOO,
    LOCAL_TOO,
    ZOO,
    Family,
    families,
    find_folder,
    get_family,
    hub_patterns,
    look_at,
    recognised,
    references_of,
    spellings,
)
from bico.models.files import ModelFiles
from bico.models.protocol import Model
from bico.models.weight_files import refuse_pickle

__all__ = ["ModelFiles", "family_here", "load", "resolve"]


def resolve(ref: str, allow_pickle: bool = False) -> ModelFiles:
    """Finds (or downloads) the files of a model reference.

    Arguments:
        allow_pickle: Accept weights that `torch.save` wrote; of them too, nothing but tensors is read.

    Raises:
        UnknownModelError: If the reference names no model: says which are near.
        CheckpointError: If the model is known but its files are missing, or are pickles that are not allowed.
        ConfigError: If a library that the model needs is not installed.
    """
    files = _find(ref, allow_pickle)
    refuse_pickle(files.weights, allow_pickle)
    return replace(files, allow_pickle=allow_pickle)


def load(files: ModelFiles, device: str | torch.device = "cpu") -> Model:
    """Loads a model in float32, frozen, in eval mode.

    Raises:
        CheckpointError: If the weights are damaged, not finite, or do not fit the configuration.
        ConfigError: If the library of the model's family is not installed.
    """
    return get_family(files.family).load(files, device)


def family_here(ref: str) -> Family | None:
    """The family of a model that is a folder here, or of the zoo; None of others, and of what cannot be read."""
    scheme, _, rest = ref.partition(":")
    try:
        folder = zoo.resolve(rest) if scheme == ZOO else Path(rest if scheme == LOCAL_TOO else ref).expanduser()
        return recognised(folder) if folder.is_dir() else None
    except (BicoError, OSError):
        return None


def _find(ref: str, allow_pickle: bool) -> ModelFiles:
    if (found := look_at(ref, allow_pickle)) is not None:
        return found
    scheme, _, rest = ref.partition(":")
    if scheme == ZOO:
        return find_folder(ref, zoo.resolve(rest))
    if scheme in (HUB, *HUB_TOO):
        return find_folder(ref, _download(ref, rest))
    if own := references_of(scheme):
        return own.find(ref)
    path = Path(ref).expanduser()
    if not path.exists() and not any(mark in ref for mark in "/\\"):
        raise UnknownModelError(
            f"Unknown model {ref!r}: give {spellings(families())}; "
            + nearest(ref, [f"{ZOO}:{name}" for name in zoo.list_models()])
        )
    return find_folder(ref, path, allow_pickle)


def _download(ref: str, place: str) -> Path:
    """Fetches a repository of the hub, at a revision or the newest, unless the hub client's cache has it."""
    repository, _, revision = place.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UnknownModelError(f"{ref}: a model of the hub is hf:OWNER/NAME or hf:OWNER/NAME@REVISION.")
    try:
        import huggingface_hub  # slow to import, and only needed here
    except ImportError as error:
        raise ConfigError(f"{ref}: downloads need huggingface_hub: pip install huggingface_hub.") from error
    try:
        found = huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=hub_patterns())
    except Exception as error:  # whatever the hub client raises where there is no network, no room or no such model
        raise CheckpointError(f"{ref}: could not be downloaded: {one_line(error)}.") from error
    return Path(found)
