"""The family's entry in the table: names, files and the way to the rest, without transformers."""

import json
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError
from bico.models.decoder.layouts import LAYOUTS, refusal
from bico.models.files import ModelFiles
from bico.models.libraries import require
from bico.models.weight_files import weight_files

CONFIG = "config.json"
TOKENIZER = ("tokenizer.json", "vocab.json", "tokenizer.model")
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    *TOKENIZER,
)
"""What lies beside configuration and weights, where it does."""


class DecoderFamily:
    """Decoder language models of transformers, in folders that `save_pretrained` writes: no code of theirs."""

    name = "decoder"
    library = "transformers"
    distributions = ("transformers", "tokenizers")
    references = None
    only_loss = "completion"
    """In which a task is posed where nothing else is said: that of text that the model completes."""
    folder_format = f"{CONFIG} of a decoder ({', '.join(LAYOUTS)}) beside weights and tokenizer (transformers' format)"
    hub_patterns = (CONFIG, "*.safetensors", "*.safetensors.index.json", *BESIDE)
    weights_note = "`*.safetensors` are the whole weights, in transformers' format and the dtype that they came in"
    baseline = "the target before"
    blockwise = True
    """Whether its models can be read block by block (`ModelFiles.blockwise`)."""

    def recognises(self, folder: Path) -> bool:
        """A configuration of a kind that the table of layouts has, or of a decoder that it has not, which is refused."""
        try:
            config = json.loads((folder / CONFIG).read_text())
            return config["model_type"] in LAYOUTS or refusal(config) is not None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def find_folder(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        folder = folder.resolve()
        config = json.loads((folder / CONFIG).read_text())
        if (why := refusal(config)) is not None:
            raise CheckpointError(f"{ref}: {folder / CONFIG} is of type {config['model_type']!r}, {why}.")
        weights = weight_files(folder, allow_pickle).paths
        if not any((folder / name).is_file() for name in TOKENIZER):
            raise CheckpointError(f"{ref}: no tokenizer in {folder}: it holds {' or '.join(TOKENIZER)}.")
        beside = {path for name in BESIDE for path in folder.glob(name)} | set(folder.glob("*.safetensors.index.json"))
        others = sorted(beside - {*weights})
        return ModelFiles(ref, self.name, weights[0], (folder / CONFIG, *weights, *others), folder)

    def load(self, files: ModelFiles, device: Any) -> Any:
        require("transformers", "text", files.ref)
        from bico.models.decoder.loading import load, open_blockwise

        return (open_blockwise if files.blockwise else load)(files, device)

    def save(self, model: Any, files: ModelFiles, folder: Path) -> None:
        from bico.models.decoder.loading import save

        save(model, files, folder)


DECODER = DecoderFamily()
