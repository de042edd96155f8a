"""The family's entry in the table: names, files and the way to the rest, without open_clip."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError, one_line
from bico.models.clip import transformers_format as hf
from bico.models.files import ModelFiles, References
from bico.models.libraries import require
from bico.models.weight_files import USUAL, weight_files

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


def _published(ref: str) -> ModelFiles:
    require("open_clip", "clip", ref)
    from bico.models.clip.published import find

    return find(ref)


class ClipFamily:
    """CLIP models of open_clip, by `open_clip:ARCH/TAG`, `open_clip:ARCH/path/to/file`, or as a `local-dir` folder; and of
    transformers, as a folder that `save_pretrained` writes.
    """

    name = "clip"
    library = "open_clip"
    distributions = ("open_clip_torch",)
    references = References("open_clip", "open_clip:ARCH/TAG", _published)
    folder_format = (
        f"{CONFIG} beside weights and tokenizer (open_clip's local-dir format), or {hf.CONFIG} of a CLIP model"
    )
    hub_patterns = (
        CONFIG,
        "*.safetensors",
        "*.safetensors.index.json",
        "tokenizer*.json",
        "special_tokens_map.json",
        "vocab.json",
        "*.txt",
        hf.CONFIG,
        *hf.PROCESSORS,
    )
    weights_note = f"`{WEIGHTS}` are the whole weights, in open_clip's `local-dir` format"
    weight_stems = ("open_clip_model", "open_clip_pytorch_model", *USUAL)
    baseline = "zero-shot"

    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file() or hf.kind_of(folder) in (hf.KIND, *hf.TOWER_KINDS)

    def find_folder(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        config = folder / CONFIG
        if not config.is_file():
            return self._find_transformers(ref, folder, allow_pickle)
        try:
            json.loads(config.read_text())["model_cfg"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{ref}: {config} is not an open_clip configuration: {one_line(error)}.") from error
        weights = weight_files(folder, allow_pickle, self.weight_stems).paths
        others = sorted(p for p in folder.glob("*.json") if p != config) + sorted(folder.glob("*.txt"))
        return ModelFiles(ref, self.name, weights[0], (config, *weights, *others), folder.resolve())

    def _find_transformers(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        if hf.kind_of(folder) in hf.TOWER_KINDS:
            raise CheckpointError(
                f"{ref}: a CLIP image tower of transformers without its text tower, so that there is no head to name classes "
                "with: give the whole CLIPModel as a model; the tower alone serves as --expert of it."
            )
        weights = weight_files(folder, allow_pickle, self.weight_stems).paths
        if not any((folder / name).is_file() for name in hf.TOKENIZERS):
            raise CheckpointError(
                f"{ref}: no tokenizer in {folder}: it holds {' or '.join(hf.TOKENIZERS)}; save the model's processor there too."
            )
        size = hf.model_config(folder, ref)["vision_cfg"]["image_size"]
        hf.preprocessing(folder, size, ref)
        others = {
            path for pattern in self.hub_patterns for path in folder.glob(pattern) if path.suffix != ".safetensors"
        }
        config = folder / hf.CONFIG
        return ModelFiles(ref, self.name, weights[0], (config, *weights, *sorted(others - {config})), folder.resolve())

    def load(self, files: ModelFiles, device: Any) -> Any:
        require("open_clip", "clip", files.ref)
        from bico.models.clip.loading import load

        return load(files, device)

    def save(self, model: Any, files: ModelFiles, folder: Path) -> None:
        from bico.models.clip.loading import save

        save(model, files, folder)

    def namings(self, parameters: Iterable[str]) -> Any:
        from bico.models.clip.transformers_names import namings

        return namings(parameters)


CLIP = ClipFamily()
