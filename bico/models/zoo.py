"""The embedded zoo: which models there are, where they lie, and whether they are whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError, UnknownModelError, nearest
from bico.models.families import recognised

_MANIFEST = "manifest.json"


def root() -> Path:
    """Returns the directory that holds recipes, manifest and one directory per model."""
    # Beside `bico` in a checkout and once installed; importing it would find any folder named `zoo` on the way.
    return Path(__file__).resolve().parents[2] / "zoo"


def recipes() -> dict[str, Path]:
    """Returns every model that can be built: name → recipe file."""
    return {path.stem: path for path in sorted((root() / "recipes").glob("*.yaml"))}


def recipe(name: str) -> Path:
    """Returns the recipe file of a model.

    Raises:
        UnknownModelError: If the zoo has no such recipe.
    """
    known = recipes()
    if name not in known:
        raise UnknownModelError(f"The zoo has no recipe for {name!r}: {nearest(name, known)}")
    return known[name]


def list_models(folder: Path | None = None) -> list[str]:
    """Returns the names of the models that are there to use, in alphabetical order.

    Arguments:
        folder: The zoo; the one that ships with the project by default.
    """
    places = {path.parent for path in (folder or root()).glob("*/*.safetensors")}
    return sorted(place.name for place in places if recognised(place) is not None)


def read_manifest(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Returns what is known of each model, under `models`: recipe, digest, size and measurements.

    Arguments:
        folder: The zoo; the one that ships with the project by default.

    Raises:
        CheckpointError: If the manifest cannot be read.
    """
    path = (folder or root()) / _MANIFEST
    if not path.exists():
        return {"models": {}}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON ({error}): restore it, or delete it and run `bico zoo build`."
        ) from error


def resolve(name: str, folder: Path | None = None) -> Path:
    """Returns the directory of a model, in its family's format, once its weights are known to be whole.

    Arguments:
        name: As `list_models` gives it.
        folder: The zoo; the one that ships with the project by default.

    Raises:
        UnknownModelError: If there is no such model: names the nearest.
        CheckpointError: If the weights are not those of the manifest.
    """
    folder = folder or root()
    names = list_models(folder)
    if name not in names:
        raise UnknownModelError(f"The zoo has no model {name!r}: {nearest(name, names)}")
    entry = read_manifest(folder)["models"].get(name)
    if entry is not None:
        verify(folder / name, entry["sha256"])
    return folder / name


def weights(model: Path) -> Path:
    """Returns a model's weights: in the zoo they are one file, whatever its family calls it.

    Raises:
        CheckpointError: If there is no such file, or more than one.
    """
    found = sorted(model.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"{model} holds {len(found)} files of weights (.safetensors) and not one: run `bico zoo build {model.name}`."
        )
    return found[0]


def digest(model: Path) -> str:
    """Returns the sha256 of a model's weights file, in hexadecimal; raises like `weights`."""
    with weights(model).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(model: Path, sha256: str) -> None:
    """Checks a model's weights against a digest.

    Raises:
        CheckpointError: If the file is missing or another one.
    """
    found = digest(model)
    if found != sha256:
        raise CheckpointError(
            f"{weights(model)} is damaged or was replaced: its sha256 begins {found[:12]}, the manifest says {sha256[:12]}. "
            f"Restore it, or run `bico zoo build {model.name}`."
        )


def register(name: str, entry: dict[str, Any], folder: Path | None = None) -> None:
    """Writes one model's entry into the manifest, replacing an older one.

    Arguments:
        name: The model.
        entry: What is known of it; must hold `sha256`.
        folder: The zoo; the one that ships with the project by default.
    """
    folder = folder or root()
    models = read_manifest(folder)["models"] | {name: entry}
    partial = folder / f"{_MANIFEST}.partial"
    partial.write_text(json.dumps({"models": dict(sorted(models.items()))}, indent=2) + "\n")
    partial.replace(folder / _MANIFEST)
