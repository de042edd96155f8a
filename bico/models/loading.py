"""From a model reference to a loaded model.

zoo:NAME                       a mini model shipped with the project
hf:OWNER/NAME[@REVISION]       a T5 of the Hugging Face hub (hf:google-t5/t5-large)
open_clip:ARCH/TAG             a published checkpoint, downloaded by open_clip (ViT-B-16/laion2b_s34b_b88k)
open_clip:ARCH/path/to/file    a checkpoint file of a built-in architecture
path/to/folder                 a folder in open_clip's `local-dir` format (open_clip_config.json, weights, tokenizer), or a
                               T5 in transformers' (config.json, safetensors weights, tokenizer)
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn

from bico.errors import CheckpointError, UnknownModelError, nearest, one_line
from bico.models import zoo
from bico.models.clip_vit import ClipViT
from bico.models.files import T5, ModelFiles
from bico.models.pickles import refuse_pickle
from bico.models.protocol import Model
from bico.models.t5_loading import download, find_folder, is_transformers, load_t5

__all__ = ["CONFIG", "WEIGHTS", "ModelFiles", "load", "resolve"]

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
PICKLED = ("*.pt", "*.pth", "*.bin")


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
        return _folder(ref, zoo.resolve(rest), allow_pickle=False)
    if scheme == "hf":
        return download(ref)
    if scheme == "open_clip":
        return _built_in(ref, *rest.partition("/")[::2])
    path = Path(ref).expanduser()
    if not path.exists() and not any(mark in ref for mark in "/\\"):
        raise UnknownModelError(
            f"Unknown model {ref!r}: give zoo:NAME, open_clip:ARCH/TAG, hf:OWNER/NAME or an existing folder; "
            + nearest(ref, [f"zoo:{name}" for name in zoo.list_models()])
        )
    return _folder(ref, path, allow_pickle)


def _folder(ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
    if not (folder / CONFIG).is_file() and is_transformers(folder):
        return find_folder(ref, folder)
    return _local_dir(ref, folder, allow_pickle)


def load(files: ModelFiles, device: str | torch.device = "cpu") -> Model:
    """Loads a model in float32, frozen, in eval mode.

    Raises:
        CheckpointError: If the weights are damaged, not finite, or do not fit the architecture (position embeddings
            of another image size included: open_clip itself would silently interpolate them).
    """
    if files.family == T5:
        return load_t5(files, device)
    try:
        with _quiet():
            model = open_clip.create_model(files.name, load_weights=False)
        refuse_pickle(files.weights, files.allow_pickle)  # what it was when it was found may have been replaced
        state = factory.load_state_dict(str(files.weights), weights_only=True)
    except Exception as error:  # open_clip and safetensors raise a dozen types here; all mean: unreadable
        raise CheckpointError(
            f"{files.ref}: cannot read {files.weights}: {one_line(error)}. Fetch it again."
        ) from error
    _check_fits(files, model, state)
    try:
        factory.load_checkpoint(model, str(files.weights), weights_only=True)
    except RuntimeError as error:
        raise CheckpointError(f"{files.ref}: the weights do not fit the architecture: {one_line(error)}.") from error
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
        raise CheckpointError(f"{ref}: {config} is not an open_clip configuration: {one_line(error)}.") from error
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
            raise CheckpointError(f"{ref}: could not be downloaded: {one_line(error)}.") from error
    else:
        weights = Path(tag).expanduser()
        if not weights.is_file():
            tags = open_clip.list_pretrained_tags_by_model(architecture)
            raise UnknownModelError(f"{ref}: {tag!r} is neither a file nor a tag of {architecture}: {_few(tag, tags)}")
    return ModelFiles(ref, architecture, weights, (weights,))


def _few(name: str, valid: list[str]) -> str:
    return nearest(name, valid if len(valid) < 20 else sorted(valid, key=lambda v: v[:5] != name[:5])[:20])
