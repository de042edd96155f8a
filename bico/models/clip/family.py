"""The family's entry in the table: names, files and the way to the rest, without open_clip."""

import json
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError, one_line
from bico.models.files import ModelFiles, References
from bico.models.libraries import require

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
PICKLED = ("*.pt", "*.pth", "*.bin")


def _published(ref: str) -> ModelFiles:
    require("open_clip", "clip", ref)
    from bico.models.clip.published import find

    return find(ref)


class ClipFamily:
    """CLIP models of open_clip, by `open_clip:ARCH/TAG`, `open_clip:ARCH/path/to/file`, or as a `local-dir` folder."""

    name = "clip"
    library = "open_clip"
    distributions = ("open_clip_torch",)
    references = References("open_clip", "open_clip:ARCH/TAG", _published)
    folder_format = f"{CONFIG} beside weights and tokenizer (open_clip's local-dir format)"
    hub_patterns = (CONFIG, "*.safetensors", "tokenizer*.json", "special_tokens_map.json", "vocab.json", "*.txt")
    weights_note = f"`{WEIGHTS}` are the whole weights, in open_clip's `local-dir` format"
    baseline = "zero-shot"

    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file()

    def find_folder(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        config = folder / CONFIG
        try:
            json.loads(config.read_text())["model_cfg"]
        except (OSError, ValueError, KeyError, TypeError) as error:
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
        return ModelFiles(ref, self.name, chosen, (config, chosen, *others), folder.resolve())

    def load(self, files: ModelFiles, device: Any) -> Any:
        require("open_clip", "clip", files.ref)
        from bico.models.clip.loading import load

        return load(files, device)

    def save(self, model: Any, files: ModelFiles, folder: Path) -> None:
        from bico.models.clip.loading import save

        save(model, files, folder)


CLIP = ClipFamily()
