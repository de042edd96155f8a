"""Who builds, measures and describes the models of each family of the zoo.

Each imports what it builds with when it is asked to: listing the zoo needs none of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from bico.errors import ConfigError, nearest
from bico.models import zoo


class Builder(Protocol):
    """What the zoo has to know of a family; a recipe is a frozen dataclass of the family's own."""

    def load(self, path: Path) -> Any:
        """Reads a recipe, and raises ConfigError if it is none of this family."""
        ...

    def check(self, recipe: Any, data: Sequence[Path]) -> None:
        """Raises DataError if data that the recipe needs are not there."""
        ...

    def train(self, recipe: Any, folder: Path, data: Sequence[Path], threads: int) -> dict[str, Any]:
        """Builds a model and writes it; returns how it went."""
        ...

    def measure(self, recipe: Any, folder: Path, record: dict[str, Any], data: Sequence[Path]) -> dict[str, Any]:
        """Measures a model that was built; returns its entry in the manifest."""
        ...

    def describe(self, entry: dict[str, Any]) -> tuple[int, str]:
        """Parameters that can give and take task vectors, and in a few words what the model can do."""
        ...


class ClipBuilder:
    def load(self, path: Path) -> Any:
        from zoo_build.clip import ClipPretraining

        return ClipPretraining.load(path)

    def check(self, recipe: Any, data: Sequence[Path]) -> None:
        """Its pictures are drawn, not read."""

    def train(self, recipe: Any, folder: Path, data: Sequence[Path], threads: int) -> dict[str, Any]:
        from zoo_build.clip import run

        return run(recipe, folder, threads=threads)

    def measure(self, recipe: Any, folder: Path, record: dict[str, Any], data: Sequence[Path]) -> dict[str, Any]:
        from zoo_build.measure_clip import entry

        return entry(recipe, folder, record, data)

    def describe(self, entry: dict[str, Any]) -> tuple[int, str]:
        scores = ", ".join(f"{task} {value:.0f}" for task, value in entry["zero_shot"].items())
        held_out = entry["held_out"]["mean"]
        return entry["image_parameters"], f"held-out captions {held_out:.0f} %  zero-shot %: {scores}"


class T5Builder:
    def load(self, path: Path) -> Any:
        from zoo_build.t5 import T5Pretraining

        return T5Pretraining.load(path)

    def check(self, recipe: Any, data: Sequence[Path]) -> None:
        from zoo_build.text_corpus import find_corpus

        find_corpus(recipe.corpus, data)

    def train(self, recipe: Any, folder: Path, data: Sequence[Path], threads: int) -> dict[str, Any]:
        from zoo_build.t5 import run

        return run(recipe, folder, data, threads=threads)

    def measure(self, recipe: Any, folder: Path, record: dict[str, Any], data: Sequence[Path]) -> dict[str, Any]:
        from zoo_build.measure_t5 import entry

        return entry(recipe, folder, record, data)

    def describe(self, entry: dict[str, Any]) -> tuple[int, str]:
        scores = ", ".join(f"{task} {found['encoder']:.0f}" for task, found in entry["probe"].items())
        return entry["encoder_parameters"], f"held-out loss {entry['held_out_loss']:.2f}  linear probe %: {scores}"


class DecoderBuilder:
    def load(self, path: Path) -> Any:
        from zoo_build.decoder import DecoderPretraining

        return DecoderPretraining.load(path)

    def check(self, recipe: Any, data: Sequence[Path]) -> None:
        from zoo_build.text_corpus import find_corpus

        find_corpus(recipe.corpus, data)

    def train(self, recipe: Any, folder: Path, data: Sequence[Path], threads: int) -> dict[str, Any]:
        from zoo_build.decoder import run

        return run(recipe, folder, data, threads=threads)

    def measure(self, recipe: Any, folder: Path, record: dict[str, Any], data: Sequence[Path]) -> dict[str, Any]:
        from zoo_build.measure_decoder import entry

        return entry(recipe, folder, record, data)

    def describe(self, entry: dict[str, Any]) -> tuple[int, str]:
        found = entry["held_out"]
        return entry["block_parameters"], (
            f"held-out loss {found['loss']:.2f}, {found['bits per character']:.2f} bits per character"
        )


DEFAULT = "clip"
"""The family of recipes that name none."""
BUILDERS: dict[str, Builder] = {"clip": ClipBuilder(), "t5": T5Builder(), "decoder": DecoderBuilder()}
"""By the family that a recipe names."""


def family(name: str) -> str:
    """Returns the family of the model that a recipe of the zoo builds.

    Raises:
        UnknownModelError: If the zoo has no such recipe.
        ConfigError: If there is no such family.
    """
    values = yaml.safe_load(zoo.recipe(name).read_text())
    found = values.get("family", DEFAULT)
    if found not in BUILDERS:
        raise ConfigError(f"{name}.yaml: unknown family {found!r}: {nearest(found, BUILDERS)}")
    return found


def builder(name: str) -> Builder:
    """Returns who builds the model of a recipe; raises like `family`."""
    return BUILDERS[family(name)]


def summary(name: str, entry: dict[str, Any]) -> str:
    """Returns one line about a model: its size, and what it can do."""
    size, skill = BUILDERS[entry["recipe"].get("family", DEFAULT)].describe(entry)
    return f"zoo:{name:14} {size / 1e6:.1f} M  {skill}"
