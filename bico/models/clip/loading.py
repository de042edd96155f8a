"""CLIP models from their files by way of open_clip, and back as folders in its `local-dir` format."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_text_pos_embed
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch import Tensor, nn

from bico.errors import CheckpointError, one_line
from bico.models.checkpoint_names import Naming, Piece, find_reading
from bico.models.checkpoints import Checkpoint, check_floats, read_checkpoint
from bico.models.clip import transformers_format as hf
from bico.models.clip.family import CONFIG, WEIGHTS
from bico.models.clip.published import model_config, parts, trained_with
from bico.models.clip.transformers_names import namings
from bico.models.clip.vit import PREFIX, ClipViT
from bico.models.files import ModelFiles
from bico.task_vector import check_finite

_log = logging.getLogger(__name__)


def load(files: ModelFiles, device: str | torch.device) -> ClipViT:
    """Loads a model in float32, frozen, in eval mode, with the preprocessing and activation of its folder or tag.

    Raises:
        CheckpointError: If the weights are damaged, not finite, or do not fit the architecture (position embeddings
            of another image size included: open_clip itself would silently interpolate them).
    """
    model, tokenizer = _without_weights(files)
    checkpoint = read_checkpoint(files.folder or files.weights, files.allow_pickle)
    state = _renamed(files, model, checkpoint)
    _check_fits(files, model, state)
    try:
        model.load_state_dict(_as_open_clip_names_it(state, model))
    except RuntimeError as error:
        raise CheckpointError(f"{files.ref}: the weights do not fit the architecture: {one_line(error)}.") from error
    preprocess = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    return ClipViT(model.float().to(device), preprocess, tokenizer(), files.ref)


def _without_weights(files: ModelFiles) -> tuple[nn.Module, Callable[[], Any]]:
    """The architecture with its preprocessing, and what makes its tokenizer."""
    try:
        if (theirs := transformers_folder(files)) is not None:
            config = hf.model_config(theirs, files.ref)
            model = open_clip.model.CLIP(**config)
            size = config["vision_cfg"]["image_size"]
            told = {"size": size, **hf.preprocessing(theirs, size, files.ref)}
            open_clip.model.set_model_preprocess_cfg(model, asdict(PreprocessCfg(**told)))
            context = config["text_cfg"]["context_length"]
            return model, lambda: HFTokenizer(str(theirs), context_length=context)
        if files.folder is None:
            architecture, tag = parts(files.ref)
            name, told = architecture, trained_with(architecture, tag)
        else:
            name, told = f"local-dir:{files.folder}", {}
        with _quiet():
            return open_clip.create_model(name, load_weights=False, **told), lambda: open_clip.get_tokenizer(name)
    except CheckpointError:
        raise
    except Exception as error:  # open_clip raises a dozen types here; all mean: unreadable
        raise CheckpointError(
            f"{files.ref}: cannot be made as its configuration says: {one_line(error)}. Fetch it again."
        ) from error


def transformers_folder(files: ModelFiles) -> Path | None:
    """The folder of a model in transformers' format; None of others."""
    return None if files.folder is None or (files.folder / CONFIG).is_file() else files.folder


def _renamed(files: ModelFiles, model: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights by open_clip's names, found by those of the image tower; as they are, where that is not found."""
    expected = list(model.state_dict())
    tower = [name for name in expected if name.startswith(PREFIX)]
    own, *foreign = Naming("", {name: Piece((name,)) for name in expected}), *namings(expected)
    known = [naming for naming in (own, *foreign) if naming.pieces.keys() >= set(tower)]
    reading = find_reading(checkpoint, known, tower, files.ref)
    if reading is None:
        return dict(checkpoint.tensors)  # one of open_clip's own conversions may know it; else it is refused next
    as_expected = transformers_folder(files) and reading.naming is not own and not reading.prefix
    for note in (*checkpoint.notes, *(() if as_expected else reading.notes)):
        _log.warning("%s", note)
    if reading.naming is own:
        start = reading.prefix
        return {name.removeprefix(start): t for name, t in checkpoint.tensors.items() if name.startswith(start)}
    return {name: reading.parameter(name) for name in expected if reading.has(name)}


def save(model: ClipViT, files: ModelFiles, folder: Path) -> None:
    """Writes a model, at its present weights, in open_clip's `local-dir` format.

    Raises:
        CheckpointError: If a weight is not finite.
    """
    state = model.model.state_dict()
    check_finite(state.items(), f"{model.name}, to be written to {folder}")
    theirs = transformers_folder(files)
    own = None if theirs else files.folder
    for path in files.files if own else ():
        if path.name != CONFIG and path.suffix in (".json", ".txt") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)  # the tokenizer
    if own is None:
        # A folder's tokenizer is its own: open_clip would not look for it on the hub.
        if isinstance(model.tokenizer, HFTokenizer):
            model.tokenizer.tokenizer.save_pretrained(folder)
        preprocessing = open_clip.get_model_preprocess_cfg(model.model)
        built = hf.model_config(theirs, files.ref) if theirs else model_config(*parts(files.ref))
        config = {"model_cfg": built, "preprocess_cfg": preprocessing}
        (folder / CONFIG).write_text(json.dumps(config, indent=2))
    else:
        (folder / CONFIG).write_text((own / CONFIG).read_text())
    unfinished = folder / f".{WEIGHTS}.{os.getpid()}"
    unfinished.touch()
    mode = unfinished.stat().st_mode  # what files here get; the one of `save_file` is for the user's eyes only
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, unfinished)
    unfinished.chmod(mode)
    unfinished.replace(folder / WEIGHTS)


def _as_open_clip_names_it(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """What `open_clip.factory.load_checkpoint` does to a state dict before it is loaded, without reading the file again
    and without interpolating position embeddings of pictures.
    """
    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a scalar in some checkpoints, one number in a row in others
        if name in state and getattr(model, name, None) is not None:
            state[name] = state[name].reshape(getattr(model, name).shape)
    if "logit_bias" not in state and getattr(model, "logit_bias", None) is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    # Written by transformers before 4.31, and a buffer that nothing reads.
    state.pop("text.transformer.embeddings.position_ids", None)
    resize_text_pos_embed(state, model)
    return state


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
    floats = {
        n: t for n, t in state.items() if n in expected and expected[n].is_floating_point() and isinstance(t, Tensor)
    }
    check_floats(floats, files.ref)
    for name in ("visual.positional_embedding", "visual.conv1.weight", "visual.proj"):
        if name in state and name in expected and state[name].shape != expected[name].shape:
            same_width = state[name].shape[-1] == expected[name].shape[-1]
            grid = name.endswith("positional_embedding") and same_width
            hint = "another image size" if grid else "another architecture"
            raise CheckpointError(
                f"{files.ref}: {name} is {tuple(state[name].shape)} in {files.weights.name} and "
                f"{tuple(expected[name].shape)} in the configuration: the checkpoint is of {hint}."
            )
