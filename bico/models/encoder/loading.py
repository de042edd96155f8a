"""Text encoders from folders of transformers and sentence-transformers, and back."""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bico.errors import CheckpointError, one_line
from bico.models.checkpoint_names import Naming, Piece
from bico.models.checkpoints import check_floats, read_checkpoint
from bico.models.encoder.encoder import TextEncoder
from bico.models.encoder.family import WEIGHTS
from bico.models.encoder.recipe import CONFIG, read_recipe, write_pooling
from bico.models.files import ModelFiles
from bico.models.weight_files import PICKLED, SAFE

_ACTIVATIONS = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid}
_OLDER = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_NOT_ASKED = ("pooler.",)
"""Modules that features do not go through, and that a folder may lack."""
_log = logging.getLogger(__name__)


def load(files: ModelFiles, device: str | torch.device) -> TextEncoder:
    """Loads a model in float32, frozen, in eval mode.

    Raises:
        CheckpointError: If weights, configuration or tokenizer are damaged, or the weights are not finite or do not fit
            the configuration.
    """
    folder = _folder(files)
    recipe = read_recipe(folder)
    if files.pooling:
        recipe = replace(recipe, pooling=(files.pooling,))
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(recipe.encoder, **safe)
        tokenizer = AutoTokenizer.from_pretrained(recipe.encoder, **safe)
        tensors = _read(recipe.encoder, files.allow_pickle)
        model = AutoModel.from_config(config, dtype=torch.float32)
        dense = [_dense(place, files.allow_pickle) for place in recipe.dense]
    except CheckpointError:
        raise
    except Exception as error:  # transformers and safetensors raise a dozen types here; all mean: unreadable
        raise CheckpointError(f"{files.ref}: cannot read {folder}: {one_line(error)}. Fetch it again.") from error
    _fill(model, tensors, files.ref)
    encoder = TextEncoder(model.to(device), tokenizer, recipe, [part.to(device) for part in dense], files.ref)
    if files.classifier is None:
        return encoder
    from bico.models.encoder.classifier import with_head_of

    return with_head_of(encoder, files.classifier)


def save(model: TextEncoder, files: ModelFiles, folder: Path) -> None:
    """Writes a model, at its present weights, in the format that it came in; everything else is as it was, weights of heads
    and poolers included.
    """
    origin, recipe = _folder(files), model.recipe
    for path in files.files:
        if path.parent == recipe.encoder and (path.suffix in (*SAFE, *PICKLED) or path.name.endswith(".index.json")):
            continue
        place = folder / path.relative_to(origin)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    if (origin / "modules.json").is_file():  # a module without files has an empty folder, which a copy must have too
        for part in json.loads((origin / "modules.json").read_text()):
            (folder / part["path"]).mkdir(exist_ok=True)
    at = folder / recipe.encoder.relative_to(origin)
    present = {name: tensor.detach() for name, tensor in model.model.state_dict().items()}
    names = base_names(tensors := _read(recipe.encoder, files.allow_pickle), present, model.model.base_model_prefix)
    written = {
        key: (present.get(names[key], tensor) if key in names else tensor).cpu().float().contiguous().clone()
        if tensor.is_floating_point()
        else tensor
        for key, tensor in tensors.items()
    }
    save_file(written, at / WEIGHTS, {"format": "pt"})
    config = json.loads((at / CONFIG).read_text())
    config["dtype"] = "float32"
    config.pop("torch_dtype", None)
    (at / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if files.pooling:  # the folder that comes out says what the one that it came from did not
        write_pooling(folder, files.pooling, model.model.config.hidden_size)


def base_names(keys: Iterable[str], known: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Returns the base model's names of those of a checkpoint's tensors that are of the base model.

    A checkpoint with a head calls them by the base model's prefix (`bert.`), one of sentence-transformers by its module
    (`0.auto_model.`), and a wrapper around that by one more.

    Example:
        >>> known = {"x.weight": torch.zeros(1)}
        >>> base_names(["0.auto_model.x.weight", "bert.x.weight", "classifier.weight"], known, "bert")
        {'0.auto_model.x.weight': 'x.weight', 'bert.x.weight': 'x.weight'}
    """
    found = {}
    for key in keys:
        name = key
        for old, new in _OLDER.items():
            name = name.replace(old, new)
        for lead in ("model.", "0.auto_model.", "0.model.", f"{prefix}."):
            if name not in known:
                name = name.removeprefix(lead)
        if name in known:
            found[key] = name
    return found


def namings(parameters: Iterable[str]) -> tuple[Naming, ...]:
    """Returns the naming of BERT's first checkpoints, which call the parameters of norms gamma and beta."""
    older = {new: old for old, new in _OLDER.items()}
    pieces = {}
    for name in parameters:
        stem, _, end = name.rpartition("LayerNorm.")
        pieces[name] = Piece((stem + older[f"LayerNorm.{end}"] if f"LayerNorm.{end}" in older else name,))
    return (Naming("a checkpoint with gamma and beta", pieces),)


def _folder(files: ModelFiles) -> Path:
    if files.folder is None:
        raise CheckpointError(f"{files.ref}: a text encoder is read from a folder, and there is none.")
    return files.folder


def _read(folder: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    checkpoint = read_checkpoint(folder, allow_pickle)
    for note in checkpoint.notes:
        _log.warning("%s", note)
    return checkpoint.tensors


def _fill(model: Any, tensors: Mapping[str, Tensor], ref: str) -> None:
    """Puts a checkpoint's tensors into a base model; what its features need must be there, and fit.

    Raises:
        CheckpointError: If a tensor is missing or of another shape.
    """
    known = model.state_dict()
    names = base_names(tensors, known, model.base_model_prefix)
    given = {name: tensors[key] for key, name in names.items()}
    check_floats({name: given[name] for name in given if known[name].is_floating_point()}, ref)
    needed = [name for name in known if not name.startswith(_NOT_ASKED)]
    if missing := [name for name in needed if name not in given]:
        raise CheckpointError(
            f"{ref}: the weights lack {min(missing)} (of {len(missing)}): they are not those of the "
            f"{type(model).__name__} that the configuration describes."
        )
    for name, tensor in given.items():
        if tensor.shape != known[name].shape:
            raise CheckpointError(
                f"{ref}: {name} is {tuple(tensor.shape)} in the weights and {tuple(known[name].shape)} in the "
                "configuration: the checkpoint is of another architecture."
            )
    model.load_state_dict({name: tensor.float() for name, tensor in given.items()}, strict=False)
    for name in {name.partition(".")[0] for name in known if name not in given}:
        setattr(model, name, None)  # a pooler that the folder does not have would be made up


def _dense(folder: Path, allow_pickle: bool) -> nn.Module:
    """A Dense module of sentence-transformers: a linear map and an activation."""
    config, tensors = json.loads((folder / CONFIG).read_text()), _read(folder, allow_pickle)
    kind = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if kind not in _ACTIVATIONS:
        raise CheckpointError(
            f"{folder}: the activation {kind} of a Dense module is not known: {', '.join(_ACTIVATIONS)}."
        )
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    linear.load_state_dict({key.removeprefix("linear."): tensor.float() for key, tensor in tensors.items()})
    return nn.Sequential(linear, _ACTIVATIONS[kind]())
