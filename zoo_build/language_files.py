"""A language model of the zoo on the disk, as transformers wants it."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from zoo_build.training import write_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: Any, folder: Path) -> None:
    """Writes configuration, float16 weights and tokenizer.

    Arguments:
        model: The trained model.
        tokenizer: The tokenizer that it was trained with.
        recipe: What it was built from, a dataclass; its place is the metadata of the weights.
        folder: Made if it does not exist; files of an earlier model are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "float16"}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(folder)
    # What is shared (the embedding with the head, or with encoder and decoder) is one parameter, and so written once.
    write_weights(folder / WEIGHTS, dict(model.named_parameters()), recipe, format="pt")
