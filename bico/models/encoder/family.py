"""The family's entry in the table: names, files and the way to the rest, without transformers."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError, ConfigError, nearest, one_line
from bico.models.encoder.layouts import LAYOUTS
from bico.models.encoder.recipe import CONFIG, LENGTHS, MODES, MODULES, PROMPTS, read_recipe
from bico.models.files import ModelFiles
from bico.models.libraries import require
from bico.models.weight_files import PICKLED, weight_files

WEIGHTS = "model.safetensors"
CLASSIFIERS = "ForSequenceClassification"
"""How transformers' classes with a trained classification head end."""
TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model")
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *TOKENIZER,
    *LENGTHS,
)
"""What lies beside configuration and weights, where it does."""


class EncoderFamily:
    """Text encoders of transformers, in folders that `save_pretrained` or sentence-transformers writes: no code of
    theirs.
    """

    name = "encoder"
    library = "transformers"
    distributions = ("transformers", "tokenizers")
    references = None
    folder_format = (
        f"{CONFIG} of a text encoder (bert, mpnet and their like) beside weights and tokenizer (transformers' format), or "
        f"{MODULES} (sentence-transformers)"
    )
    hub_patterns = (
        CONFIG,
        MODULES,
        PROMPTS,
        "*.safetensors",
        "*.safetensors.index.json",
        *BESIDE,
        *(f"[0-9]_*/{name}" for name in (CONFIG, "*.safetensors", "*.safetensors.index.json", *BESIDE)),
    )
    weights_note = f"`{WEIGHTS}` are the whole weights, in the format of the folder that they came from"
    baseline = "a probe of the target before"

    def recognises(self, folder: Path) -> bool:
        """A configuration of a kind that the table of layouts has, or a list of modules, also a damaged one."""
        if (folder / MODULES).is_file():
            return True
        try:
            return json.loads((folder / CONFIG).read_text())["model_type"] in LAYOUTS
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def find_folder(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        folder = folder.resolve()  # files are written again at the places that they have in it
        recipe = read_recipe(folder)
        at = recipe.encoder
        try:
            kind = json.loads((at / CONFIG).read_text())["model_type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{ref}: {at / CONFIG} is not a configuration of transformers.") from error
        if kind not in LAYOUTS:
            raise CheckpointError(
                f"{ref}: {at / CONFIG} is of type {kind!r}: the text encoders that are read are {', '.join(LAYOUTS)}."
            )
        weights = weight_files(at, allow_pickle).paths
        if not any((at / name).is_file() for name in TOKENIZER):
            raise CheckpointError(f"{ref}: no tokenizer in {at}: it holds {' or '.join(TOKENIZER)}.")
        beside = {path for name in BESIDE for path in at.glob(name)} | set(at.glob("*.safetensors.index.json"))
        about = {path for name in (MODULES, PROMPTS) for path in folder.glob(name)}
        behind = {path for part in folder.glob("[1-9]_*") for path in part.iterdir() if _is_kept(path, allow_pickle)}
        others = sorted((beside | about | behind) - {at / CONFIG, *weights})
        return ModelFiles(ref, self.name, weights[0], (at / CONFIG, *weights, *others), folder)

    def weights_folder(self, place: Path) -> Path:
        """Where the encoder's weights lie in a folder of sentence-transformers; any other place as it is."""
        place = place.expanduser()
        return read_recipe(place).encoder if (place / MODULES).is_file() else place

    def namings(self, parameters: Iterable[str]) -> Any:
        from bico.models.encoder.loading import namings

        return namings(parameters)

    def load(self, files: ModelFiles, device: Any) -> Any:
        require("transformers", "text", files.ref)
        from bico.models.encoder.loading import load

        return load(files, device)

    def save(self, model: Any, files: ModelFiles, folder: Path) -> None:
        from bico.models.encoder.loading import save

        save(model, files, folder)

    def with_pooling(self, files: ModelFiles, pooling: str) -> ModelFiles:
        """Files of a model whose tokens are pooled so, where its folder does not say; else as they are.

        Raises:
            ConfigError: If there is no such pooling.
        """
        if pooling not in MODES:
            raise ConfigError(f"--pooling {pooling}: there is no such pooling; {nearest(pooling, MODES)}")
        recipe = read_recipe(files.folder) if files.folder else None
        # The mean is what is taken where nothing was said.
        return files if recipe is None or recipe.said or pooling == "mean" else replace(files, pooling=pooling)

    def with_classifier(self, files: ModelFiles, folder: Path) -> tuple[ModelFiles, tuple[str, ...]]:
        """Files of a model whose loss is taken in the trained classification head in an expert's folder, and what the
        head calls its classes.

        Raises:
            CheckpointError: If the folder holds no `...ForSequenceClassification`.
        """
        folder = folder.expanduser().resolve()
        try:
            about = json.loads((folder / CONFIG).read_text())
            named = {int(n): str(name) for n, name in (about.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).items()}
            made = [str(name) for name in about.get("architectures") or []]
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder} holds no model of transformers: {CONFIG}: {one_line(error)}.") from error
        if not any(name.endswith(CLASSIFIERS) for name in made):
            raise CheckpointError(
                f"{folder} is a {', '.join(made) or 'model of no named class'}, which has no classification head: give the "
                f"folder of a ...{CLASSIFIERS}."
            )
        covered = (folder / CONFIG, *weight_files(folder, files.allow_pickle).paths)
        return replace(files, files=(*files.files, *covered), classifier=folder), tuple(named[n] for n in sorted(named))

    def save_classifier(self, model: Any, files: ModelFiles, folder: Path, head: Any, classes: Sequence[str]) -> str:
        """Writes a model with a linear classifier in the form of transformers' own, where it has one that says the same.

        Returns:
            The class of transformers that loads it; empty if there is none.
        """
        from bico.models.encoder.sequence_head import save_sequence_classifier

        return save_sequence_classifier(model, files, folder, head, classes)


def _is_kept(path: Path, allow_pickle: bool) -> bool:
    return path.suffix in (".json", ".safetensors", *(PICKLED if allow_pickle else ()))


ENCODER = EncoderFamily()
