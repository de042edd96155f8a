"""From a model reference to a loaded model.

zoo:NAME                       a mini model shipped with the project
open_clip:ARCH/TAG             a published checkpoint, downloaded by open_clip (ViT-B-16/laion2b_s34b_b88k)
open_clip:ARCH/path/to/file    a checkpoint file of a built-in architecture
path/to/folder                 a folder in open_clip's `local-dir` format (open_clip_config.json, weights, tokenizer)
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from bico import zoo
from bico.errors import CheckpointError, UnknownModelError, nearest
from bico.models.clip_vit import ClipViT
from bico.models.pickles import refuse_pickle

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
PICKLED = ("*.pt", "*.pth", "*.bin")


@dataclass(frozen=True)
class ModelFiles:
    """A resolved reference: everything on this machine that determines the model."""

    ref: str
    name: str
    """The name in open_clip's terms: an architecture, or `local-dir:` and a folder."""
    weights: Path
    files: tuple[Path, ...]
    """Weights, configuration and tokenizer: what the digest covers."""
    allow_pickle: bool = False
    """Whether weights that `torch.save` wrote may be read, tensors only."""

    def digest(self) -> str:
        """sha256 over the contents of the files and, for a built-in architecture, its name."""
        total = hashlib.sha256(b"" if self.name.startswith("local-dir:") else self.name.encode())
        for path in self.files:
            about = path.stat()
            total.update(path.name.encode() + _file_digest(path, about.st_mtime_ns, about.st_size))
        return total.hexdigest()


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> bytes:
    """Hashes a file once per process and version of it: every stage's key asks for its models' digests."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def resolve(ref: str, allow_pickle: bool = False) -> ModelFiles:
    """Finds (or downloads) the files of a model reference.

    Arguments:
        allow_pickle: Accept weights that `torch.save` wrote; of them too, nothing but tensors is read.

    Raises:
        UnknownModelError: If the reference names no model: says which are near.
        CheckpointError: If the model is known but its files are missing, or are pickles that are not allowed.
    """
    files = _find(ref, allow_pickle)
    refuse_pickle(files.weights, allow_pickle)
    return replace(files, allow_pickle=allow_pickle)


def _find(ref: str, allow_pickle: bool) -> ModelFiles:
    scheme, _, rest = ref.partition(":")
    if scheme == "zoo":
        return _local_dir(ref, zoo.resolve(rest), allow_pickle=False)
    if scheme == "open_clip":
        return _built_in(ref, *rest.partition("/")[::2])
    path = Path(ref).expanduser()
    if not path.exists() and not any(mark in ref for mark in "/\\"):
        raise UnknownModelError(
            f"Unknown model {ref!r}: give zoo:NAME, open_clip:ARCH/TAG or an existing folder; "
            + nearest(ref, [f"zoo:{name}" for name in zoo.list_models()])
        )
    return _local_dir(ref, path, allow_pickle)


def load(files: ModelFiles, device: str | torch.device = "cpu") -> ClipViT:
    """Loads a model in float32, frozen, in eval mode.

    Raises:
        CheckpointError: If the weights are damaged, not finite, or do not fit the architecture (position embeddings
            of another image size included: open_clip itself would silently interpolate them).
    """
    try:
        with _quiet():
            model = open_clip.create_model(files.name, load_weights=False)
        refuse_pickle(files.weights, files.allow_pickle)  # what it was when it was found may have been replaced
        state = factory.load_state_dict(str(files.weights), weights_only=True)
    except Exception as error:  # open_clip and safetensors raise a dozen types here; all mean: unreadable
        raise CheckpointError(
            f"{files.ref}: cannot read {files.weights}: {_one_line(error)}. Fetch it again."
        ) from error
    _check_fits(files, model, state)
    try:
        factory.load_checkpoint(model, str(files.weights), weights_only=True)
    except RuntimeError as error:
        raise CheckpointError(f"{files.ref}: the weights do not fit the architecture: {_one_line(error)}.") from error
    config = open_clip.get_model_preprocess_cfg(model)
    preprocess = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return ClipViT(model.float().to(device), preprocess, open_clip.get_tokenizer(files.name), files.ref)


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes open_clip's warning that a model was made without weights: they come next, once they have been checked."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _check_fits(files: ModelFiles, model: nn.Module, state: dict[str, Any]) -> None:
    expected = model.state_dict()
    for name in ("visual.positional_embedding", "visual.conv1.weight", "visual.proj"):
        if name in state and name in expected and state[name].shape != expected[name].shape:
            same_width = state[name].shape[-1] == expected[name].shape[-1]
            grid = name.endswith("positional_embedding") and same_width
            hint = "another image size" if grid else "another architecture"
            raise CheckpointError(
                f"{files.ref}: {name} is {tuple(state[name].shape)} in {files.weights.name} and "
                f"{tuple(expected[name].shape)} in the configuration: the checkpoint is of {hint}."
            )


def _local_dir(ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
    config = folder / CONFIG
    if not config.is_file():
        raise CheckpointError(
            f"{ref}: no {CONFIG} in {folder}: a model folder holds it beside its weights and tokenizer."
        )
    try:
        json.loads(config.read_text())["model_cfg"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{ref}: {config} is not an open_clip configuration: {_one_line(error)}.") from error
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and allow_pickle:
        weights = sorted(path for pattern in PICKLED for path in folder.glob(pattern))
    if not weights:
        raise CheckpointError(
            f"{ref}: no .safetensors weights in {folder} (pickles are read only with --allow-pickle)."
        )
    preferred = folder / WEIGHTS
    # The choice open_clip's own local-dir loader makes when a folder holds several.
    chosen = preferred if preferred in weights else weights[0]
    others = sorted(p for p in folder.glob("*.json") if p != config) + sorted(folder.glob("*.txt"))
    return ModelFiles(ref, f"local-dir:{folder.resolve()}", chosen, (config, chosen, *others))


def _built_in(ref: str, architecture: str, tag: str) -> ModelFiles:
    if architecture not in open_clip.list_models():
        raise UnknownModelError(
            f"{ref}: open_clip has no architecture {architecture!r}: {_few(architecture, open_clip.list_models())}"
        )
    if tag in open_clip.list_pretrained_tags_by_model(architecture):
        try:
            weights = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(architecture, tag)))
        except Exception as error:  # whatever the hub client raises when there is no network or no file
            raise CheckpointError(f"{ref}: could not be downloaded: {_one_line(error)}.") from error
    else:
        weights = Path(tag).expanduser()
        if not weights.is_file():
            tags = open_clip.list_pretrained_tags_by_model(architecture)
            raise UnknownModelError(f"{ref}: {tag!r} is neither a file nor a tag of {architecture}: {_few(tag, tags)}")
    return ModelFiles(ref, architecture, weights, (weights,))


def _few(name: str, valid: list[str]) -> str:
    return nearest(name, valid if len(valid) < 20 else sorted(valid, key=lambda v: v[:5] != name[:5])[:20])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
