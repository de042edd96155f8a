"""The family's entry in the table: names, files and the way to the rest, without transformers."""

import json
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError, one_line
from bico.models.files import ModelFiles
from bico.models.libraries import require
from bico.models.weight_files import weight_files

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
KINDS = ("t5", "mt5", "umt5")
"""Types of model, as configurations name them."""
TOKENIZER = ("tokenizer.json", "spiece.model")


class T5Family:
    """T5, mT5 and umT5 of transformers, whole or their encoder alone, as folders that `save_pretrained` writes; no code of
    theirs.
    """

    name = "t5"
    library = "transformers"
    distributions = ("transformers",)
    references = None
    folder_format = f"{CONFIG} of a T5 beside weights and tokenizer (transformers' format)"
    hub_patterns = (
        CONFIG,
        "*.safetensors",
        "*.safetensors.index.json",
        "tokenizer*.json",
        "special_tokens_map.json",
        *TOKENIZER,
    )
    weights_note = f"`{WEIGHTS}` are the whole weights, in transformers' format"
    baseline = "a probe of the target before"

    def recognises(self, folder: Path) -> bool:
        """A configuration of one of these types; also one that is damaged, so that it is named as such."""
        config = folder / CONFIG
        if not config.is_file():
            return False
        try:
            return _kind(config) in KINDS
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def find_folder(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        config = folder / CONFIG
        try:
            _kind(config)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{ref}: {config} is not a configuration of transformers: {one_line(error)}."
            ) from error
        weights = weight_files(folder, allow_pickle).paths
        if not any((folder / name).is_file() for name in TOKENIZER):
            raise CheckpointError(f"{ref}: no tokenizer in {folder}: it holds {' or '.join(TOKENIZER)}.")
        covered = [*weights, *sorted({*folder.glob("*.safetensors")} - {*weights})]
        covered = sorted(covered) if weights[0].suffix == ".safetensors" else covered
        found = {path for pattern in self.hub_patterns for path in folder.glob(pattern)}
        others = sorted(found - {config, *covered})
        return ModelFiles(ref, self.name, weights[0], (config, *covered, *others), folder.resolve())

    def load(self, files: ModelFiles, device: Any) -> Any:
        require("transformers", "text", files.ref)
        from bico.models.t5.loading import load

        return load(files, device)

    def save(self, model: Any, files: ModelFiles, folder: Path) -> None:
        from bico.models.t5.loading import save

        save(model, files, folder)


def _kind(config: Path) -> str:
    return json.loads(config.read_text())["model_type"]


T5 = T5Family()
