"""Decoders from folders in transformers' format, and back."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bico.errors import CheckpointError, one_line
from bico.models.checkpoints import check_floats, read_checkpoint
from bico.models.decoder.blockwise import BlockwiseDecoder, names_in, without_memory
from bico.models.decoder.decoder import Decoder
from bico.models.decoder.family import BESIDE
from bico.models.families import find_weights
from bico.models.files import ModelFiles
from bico.models.muted import muted
from bico.models.shards import Shards

_log = logging.getLogger(__name__)


def load(files: ModelFiles, device: str | torch.device) -> Decoder:
    """Loads a model with its head, frozen, in eval mode: in bfloat16 if its weights are, else in float32.

    Raises:
        CheckpointError: If weights, configuration or tokenizer are damaged, or the weights are not finite or do not fit the
            configuration: transformers itself would make up what is missing.
    """
    folder = _folder(files)
    config, tokenizer = _beside(files)
    checkpoint = read_checkpoint(folder, files.allow_pickle)
    for note in checkpoint.notes:
        _log.warning("%s", note)
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not _is_buffer(name)}
    check_floats(tensors, files.ref)
    try:
        with muted():
            model, about = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None, config=config, state_dict=tensors, dtype=_dtype(tensors), output_loading_info=True
            )
    except Exception as error:
        raise CheckpointError(f"{files.ref}: cannot be loaded by transformers: {one_line(error)}.") from error
    if made_up := about["missing_keys"]:
        raise CheckpointError(
            f"{files.ref}: the weights lack {min(made_up)} (of {len(made_up)}): they are not those of the "
            f"{type(model).__name__} that the configuration describes."
        )
    if unused := sorted(about["unexpected_keys"]):
        _log.warning("%s: %d tensors are left out, such as %s.", files.ref, len(unused), unused[0])
    return Decoder(model.to(device), tokenizer, files.ref)


def open_blockwise(files: ModelFiles, device: str | torch.device) -> BlockwiseDecoder:
    """Opens a model of which one block at a time is read; the weights' headers are looked at.

    Raises:
        CheckpointError: If configuration, tokenizer or headers are damaged, weights are pickled, or do not fit the configuration.
    """
    folder = _folder(files)
    config, tokenizer = _beside(files)
    found = find_weights(folder, files.allow_pickle)
    for note in found.notes:
        _log.warning("%s", note)
    shards = Shards(found.paths, files.ref)
    try:
        with muted(), without_memory():
            model = AutoModelForCausalLM.from_config(config, dtype=shards.dtype)
            model.tie_weights()
    except Exception as error:
        raise CheckpointError(f"{files.ref}: cannot be made by transformers: {one_line(error)}.") from error
    stored = names_in(model, shards, files.ref)
    known = {*stored.values(), *model.state_dict()}
    if unused := sorted(name for name in shards if name not in known and not _is_buffer(name)):
        _log.warning("%s: %d tensors are left out, such as %s.", files.ref, len(unused), unused[0])
    return BlockwiseDecoder(model, tokenizer, files.ref, shards, stored, torch.device(device))


def _beside(files: ModelFiles) -> tuple[Any, Any]:
    """Configuration and tokenizer."""
    folder = _folder(files)
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with muted():
            return AutoConfig.from_pretrained(folder, **safe), AutoTokenizer.from_pretrained(folder, **safe)
    except Exception as error:  # transformers raises a dozen types here; all mean: unreadable
        raise CheckpointError(f"{files.ref}: cannot read {folder}: {one_line(error)}. Fetch it again.") from error


def save(model: Decoder, files: ModelFiles, folder: Path) -> None:
    """Writes a model, at its present weights and in its dtype, in transformers' format; files beside are as they came."""
    with muted():
        model.model.save_pretrained(folder)
    for path in files.files:
        if path.name in BESIDE:
            shutil.copyfile(path, folder / path.name)


def _folder(files: ModelFiles) -> Path:
    if files.folder is None:
        raise CheckpointError(f"{files.ref}: a decoder is read from a folder, and there is none.")
    return files.folder


def _is_buffer(name: str) -> bool:
    """What older checkpoints hold beside their weights: causal masks and the frequencies of RoPE."""
    return name.endswith((".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq"))


def _dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """bfloat16 of weights that are in it; float16 has no room for gradients, and is read as float32."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    return torch.bfloat16 if kinds == {torch.bfloat16} else torch.float32
