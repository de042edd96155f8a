"""The embedded zoo: which models there are, where they lie, and whether they are whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from bico.errors import CheckpointError, UnknownModelError, nearest

WEIGHTS = "open_clip_model.safetensors"
TEXT_WEIGHTS = "model.safetensors"
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


def family(name: str) -> str:
    """Returns the family of the model that a recipe builds: `t5` or `clip`.

    Raises:
        UnknownModelError: If the zoo has no such recipe.
    """
    values = yaml.safe_load(recipe(name).read_text())
    return values.get("family", "clip")


def summary(name: str, entry: dict[str, Any]) -> str:
    """Returns one line about a model: its size, and what it can do."""
    if entry["recipe"].get("family") == "t5":
        scores = ", ".join(f"{task} {found['encoder']:.0f}" for task, found in entry["probe"].items())
        size, skill = (
            entry["encoder_parameters"],
            f"held-out loss {entry['held_out_loss']:.2f}  linear probe %: {scores}",
        )
    else:
        scores = ", ".join(f"{task} {value:.0f}" for task, value in entry["zero_shot"].items())
        size = entry["image_parameters"]
        skill = f"held-out captions {entry['held_out']['mean']:.0f} %  zero-shot %: {scores}"
    return f"zoo:{name:14} {size / 1e6:.1f} M  {skill}"


def list_models(folder: Path | None = None) -> list[str]:
    """Returns the names of the models that are there to use, in alphabetical order.

    Arguments:
        folder: The zoo; the one that ships with the project by default.
    """
    places = (folder or root()).glob("*/*.safetensors")
    return sorted({path.parent.name for path in places if path.name in (WEIGHTS, TEXT_WEIGHTS)})


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
    """Returns the directory of a model, in open_clip's `local-dir:` format or transformers', once its weights are known
    to be whole.

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
    """Returns a model's weights file, by the name that its family has."""
    return next((model / name for name in (WEIGHTS, TEXT_WEIGHTS) if (model / name).is_file()), model / WEIGHTS)


def digest(model: Path) -> str:
    """Returns the sha256 of a model's weights file, in hexadecimal.

    Raises:
        CheckpointError: If there is no such file.
    """
    path = weights(model)
    if not path.is_file():
        raise CheckpointError(f"{model} holds no {path.name}: run `bico zoo build {model.name}`.")
    with path.open("rb") as stream:
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
