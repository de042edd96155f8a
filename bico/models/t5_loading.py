"""T5 models from folders in transformers' format, and from the Hugging Face hub: safetensors only, and no code of theirs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bico.errors import CheckpointError, UnknownModelError, one_line
from bico.models.files import T5, ModelFiles
from bico.models.t5 import T5Encoder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = ("tokenizer.json", "spiece.model")
PATTERNS = [
    CONFIG,
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    *TOKENIZER,
]


def is_transformers(folder: Path) -> bool:
    """Whether a folder holds a model of transformers, of whatever type."""
    return (folder / CONFIG).is_file()


def find_folder(ref: str, folder: Path) -> ModelFiles:
    """Finds a model's files in a folder.

    Raises:
        CheckpointError: If files are missing, or the model is no T5.
    """
    config = folder / CONFIG
    try:
        kind = json.loads(config.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{ref}: {config} is not a configuration of transformers: {one_line(error)}.") from error
    if kind != "t5":
        raise CheckpointError(f"{ref}: a model of type {kind!r}; of transformers' models, only T5 is supported.")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{ref}: no .safetensors weights in {folder}: T5 models are read from nothing else; save them again with "
            "`save_pretrained`."
        )
    if not any((folder / name).is_file() for name in TOKENIZER):
        raise CheckpointError(f"{ref}: no tokenizer in {folder}: it holds {' or '.join(TOKENIZER)}.")
    others = sorted({path for pattern in PATTERNS for path in folder.glob(pattern)} - {config, *weights})
    return ModelFiles(ref, f"local-dir:{folder.resolve()}", weights[0], (config, *weights, *others), family=T5)


def download(ref: str) -> ModelFiles:
    """Fetches hf:OWNER/NAME or hf:OWNER/NAME@REVISION, unless the hub client's cache has it.

    Raises:
        UnknownModelError: If the reference is not spelt like that.
        CheckpointError: If it cannot be downloaded, or is no T5 with safetensors weights.
    """
    import huggingface_hub  # slow to import, and only needed here

    repo, _, revision = ref.removeprefix("hf:").partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UnknownModelError(f"{ref}: a model of the hub is hf:OWNER/NAME or hf:OWNER/NAME@REVISION.")
    try:
        found = huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=PATTERNS)
    except Exception as error:  # whatever the hub client raises where there is no network, no room or no such model
        raise CheckpointError(f"{ref}: could not be downloaded: {one_line(error)}.") from error
    return find_folder(ref, Path(found))


def load_t5(files: ModelFiles, device: str | torch.device) -> T5Encoder:
    """Loads a model in float32, frozen, in eval mode.

    Raises:
        CheckpointError: If the weights or the tokenizer are damaged, or the weights are not finite or do not fit the
            configuration: transformers itself would make up what is missing.
    """
    from transformers import AutoTokenizer, T5ForConditionalGeneration

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


def save_t5(model: T5Encoder, folder: Path) -> None:
    """Writes a model, at its present weights, in transformers' format; the tokenizer is not part of it."""
    with _quiet():
        model.model.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Mutes transformers' progress bars and reports: what they tell is checked."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
