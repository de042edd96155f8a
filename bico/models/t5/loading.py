"""T5 models from folders in transformers' format, and back."""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    MT5EncoderModel,
    MT5ForConditionalGeneration,
    T5EncoderModel,
    T5ForConditionalGeneration,
    UMT5EncoderModel,
    UMT5ForConditionalGeneration,
)

from bico.errors import CheckpointError, one_line
from bico.models.checkpoint_names import own_namings, read_as
from bico.models.checkpoints import check_floats, read_checkpoint
from bico.models.files import ModelFiles
from bico.models.muted import muted
from bico.models.t5.encoder import PREFIX, T5Encoder
from bico.models.t5.family import CONFIG

SHARED, HEAD = "shared.weight", "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""The embedding once more, as some files hold it."""
CLASSES: dict[str, tuple[Any, Any]] = {
    "t5": (T5ForConditionalGeneration, T5EncoderModel),
    "mt5": (MT5ForConditionalGeneration, MT5EncoderModel),
    "umt5": (UMT5ForConditionalGeneration, UMT5EncoderModel),
}
"""By type of model: the whole of it, and its encoder alone."""
_log = logging.getLogger(__name__)


def load(files: ModelFiles, device: str | torch.device) -> T5Encoder:
    """Loads a model in float32, frozen, in eval mode: whole, or its encoder alone where there is no more.

    Raises:
        CheckpointError: If the weights or the tokenizer are damaged, or the weights are not finite or do not fit the
            configuration: transformers itself would make up what is missing, an embedding from the head for one.
    """
    folder = files.folder
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with muted():
            config = AutoConfig.from_pretrained(folder, **safe)
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    except Exception as error:  # transformers raises a dozen types here; all mean: unreadable
        raise CheckpointError(f"{files.ref}: cannot read {folder}: {one_line(error)}. Fetch it again.") from error
    whole, encoder = CLASSES[config.model_type]
    weights = _renamed(files, encoder, config)
    _settle_embedding(files, weights)
    kind = whole if _has_decoder(files, weights) else encoder
    expected = _shapes(kind, config)
    _check_fits(files, kind, weights, expected)
    used = {name: weights[name] for name in expected if name in weights}
    try:
        with muted():
            model, about = kind.from_pretrained(
                None, config=config, state_dict=used, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:
        raise CheckpointError(f"{files.ref}: cannot be loaded by transformers: {one_line(error)}.") from error
    if made_up := about["missing_keys"]:
        raise CheckpointError(f"{files.ref}: the weights lack {min(made_up)} (of {len(made_up)}).")
    return T5Encoder(model.to(device), tokenizer, files.ref)


def _renamed(files: ModelFiles, encoder: Any, config: Any) -> dict[str, Tensor]:
    """The weights by transformers' names for a T5, whatever stands before them."""
    checkpoint = read_checkpoint(files.folder or files.weights, files.allow_pickle)
    wanted = [n for n in _shapes(encoder, config) if n.startswith(PREFIX) and n not in COPIES]
    own = own_namings(wanted, wanted)
    reading = read_as(checkpoint, own, wanted, files.ref)
    for note in (*checkpoint.notes, *reading.notes):
        _log.warning("%s", note)
    # Of an encoder that was saved alone, the embedding lies beside the blocks.
    before = "" if reading.naming is own[0] else PREFIX
    found, outside = {}, []
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(reading.prefix):
            found[before + name.removeprefix(reading.prefix)] = tensor
        else:
            outside.append(name)
    if outside:
        _log.warning("%s: %d tensors are left out, such as %s.", files.ref, len(outside), outside[0])
    return found


def _settle_embedding(files: ModelFiles, weights: dict[str, Tensor]) -> None:
    """Leaves the embedding under its own name alone; only what surely is the encoder's embedding is taken for it."""
    if SHARED not in weights:
        if COPIES[0] not in weights:
            raise CheckpointError(
                f"{files.ref}: the weights lack {SHARED}, the embedding, and {COPIES[0]}, which could stand in; {HEAD} is not "
                "taken for it, since it may be another matrix. Save the model again with its embedding."
            )
        weights[SHARED] = weights[COPIES[0]]
    for name in COPIES:
        copy = weights.pop(name, None)
        if copy is not None and not _equal(copy, weights[SHARED]):
            raise CheckpointError(
                f"{files.ref}: {name} is another matrix than {SHARED}, where a T5 has one embedding: save the model again."
            )


def _has_decoder(files: ModelFiles, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights are those of a whole model: its encoder alone serves too, but not for the loss of words."""
    if not any(name.startswith("decoder.block.") for name in weights):
        return False
    head, shape = weights.get(HEAD), tuple(weights[SHARED].shape)
    if head is None:
        # transformers ties the head to the embedding whatever the file says, and so would make one up.
        own = json.loads(((files.folder or Path()) / CONFIG).read_text()).get("tie_word_embeddings") is False
        odd = "is absent, and not tied to the embedding by the configuration" if own else ""
    else:
        odd = "" if head.shape == shape else f"is {tuple(head.shape)} and not {shape}, so no head that writes words"
    if odd:
        _log.warning("%s: %s %s: the encoder alone is served, without the loss of words.", files.ref, HEAD, odd)
    return not odd


def _shapes(kind: Any, config: Any) -> dict[str, torch.Size]:
    """Shapes of a class's weights, without making them."""
    with torch.device("meta"), muted():
        return {name: tensor.shape for name, tensor in kind(config).state_dict().items()}


def _check_fits(
    files: ModelFiles, kind: Any, weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size]
) -> None:
    for name, shape in expected.items():
        if name in weights and weights[name].shape != shape:
            raise CheckpointError(
                f"{files.ref}: {name} is {tuple(weights[name].shape)} in the weights and {tuple(shape)} in the "
                "configuration: the checkpoint is of another architecture."
            )
    check_floats({name: weights[name] for name in expected if name in weights}, files.ref)
    tied = {*COPIES, HEAD}
    lacking = sorted(name for name in expected if name not in weights and name not in tied)
    unused = re.compile("|".join(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ["(?!)"]))
    strange = sorted(name for name in weights if name not in {*expected, HEAD} and not unused.search(name))
    for what, names in (("lack", lacking), ("hold", strange)):
        if names:
            raise CheckpointError(
                f"{files.ref}: the weights {what} {names[0]} (of {len(names)}): they are not those of the "
                f"{kind.__name__} that the configuration describes."
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())


def save(model: T5Encoder, files: ModelFiles, folder: Path) -> None:
    """Writes a model, at its present weights, in transformers' format; the tokenizer's files are those it came with."""
    for path in files.files:
        if path.suffix in (".json", ".model") and path.name != CONFIG and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    with muted():
        model.model.save_pretrained(folder)
