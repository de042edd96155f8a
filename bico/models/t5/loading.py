"""T5 models from folders in transformers' format, and back."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration
from transformers.utils import logging

from bico.errors import CheckpointError, one_line
from bico.models.files import ModelFiles
from bico.models.t5.encoder import T5Encoder
from bico.models.t5.family import CONFIG

INDEX = "model.safetensors.index.json"


def load(files: ModelFiles, device: str | torch.device) -> T5Encoder:
    """Loads a model in float32, frozen, in eval mode.

    Raises:
        CheckpointError: If the weights or the tokenizer are damaged, or the weights are not finite or do not fit the
            configuration: transformers itself would make up what is missing.
    """
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            model, about = T5ForConditionalGeneration.from_pretrained(
                files.folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they can be named below
                **safe,
            )
            tokenizer = AutoTokenizer.from_pretrained(files.folder, **safe)
    except Exception as error:  # transformers and safetensors raise a dozen types here; all mean: unreadable
        raise CheckpointError(f"{files.ref}: cannot read {files.folder}: {one_line(error)}. Fetch it again.") from error
    if mismatched := sorted(about["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise CheckpointError(
            f"{files.ref}: {name} is {tuple(found)} in the weights and {tuple(expected)} in the configuration: the "
            "checkpoint is of another architecture."
        )
    for what, names in (("lack", about["missing_keys"]), ("hold", about["unexpected_keys"])):
        if names:
            raise CheckpointError(
                f"{files.ref}: the weights {what} {min(names)} (of {len(names)}): they are not those of the whole "
                "T5ForConditionalGeneration that the configuration describes."
            )
    return T5Encoder(model.to(device), tokenizer, files.ref)


def save(model: T5Encoder, files: ModelFiles, folder: Path) -> None:
    """Writes a model, at its present weights, in transformers' format; the tokenizer's files are those it came with."""
    for path in files.files:
        if path.name not in (CONFIG, INDEX) and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    with _quiet():
        model.model.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes transformers' progress bars and reports: what they tell is checked."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
