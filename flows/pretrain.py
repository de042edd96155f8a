"""Builds one model of the zoo from nothing but its recipe."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from bico.models import zoo
from zoo_build import clip as clip
from zoo_build import measure_clip as zoo_measure
from zoo_build import measure_t5 as zoo_measure_text
from zoo_build import t5 as text
from zoo_build.clip import ClipPretraining
from zoo_build.t5 import T5Pretraining
from zoo_build.text_corpus import find_corpus


@task(name="train", cache_policy=NO_CACHE)
def train(recipe: ClipPretraining | T5Pretraining, folder: Path, data: Sequence[Path], threads: int) -> dict[str, Any]:
    if isinstance(recipe, T5Pretraining):
        return text.run(recipe, folder, data, threads=threads)
    return clip.run(recipe, folder, threads=threads)


@task(name="measure", cache_policy=NO_CACHE)
def measure(
    recipe: ClipPretraining | T5Pretraining, folder: Path, record: dict[str, Any], data: Sequence[Path]
) -> dict[str, Any]:
    if isinstance(recipe, T5Pretraining):
        return zoo_measure_text.entry(recipe, folder, record, data)
    return zoo_measure.entry(recipe, folder, record, data)


def read_recipe(name: str) -> ClipPretraining | T5Pretraining:
    """Returns a recipe of the zoo, of the family that it names.

    Raises:
        UnknownModelError: If the zoo has no such recipe.
        ConfigError: If the recipe is none of its family.
    """
    kind = T5Pretraining if zoo.family(name) == "t5" else ClipPretraining
    return kind.load(zoo.recipe(name))


def check(name: str, data: Sequence[Path]) -> None:
    """Raises what would make the flow fail for want of a recipe or a corpus."""
    recipe = read_recipe(name)
    if isinstance(recipe, T5Pretraining):
        find_corpus(recipe.corpus, data)


@flow(name="pretrain", validate_parameters=False)
def pretrain(
    name: str, out: Path, data: Sequence[Path] = (), threads: int = 1, steps: int | None = None
) -> dict[str, Any]:
    """Pre-trains a model by its recipe and writes it, with its measurements.

    Arguments:
        name: A recipe of the zoo.
        out: The model's directory; its measurements go into `manifest.json` beside it.
        data: Folders of further tasks to measure zero-shot accuracy on; for a text model, the corpus to train on, and
            text tasks to probe on.
        threads: How many threads torch may use.
        steps: In place of the recipe's own: a shorter pre-training, with a whole schedule of its own.

    Returns:
        The model's entry in the manifest.

    Raises:
        UnknownModelError: If the zoo has no such recipe.
        ConfigError: If the fonts that the recipe's pictures need are not installed.
        DataError: If the corpus is not among the folders.
    """
    recipe = read_recipe(name) if steps is None else replace(read_recipe(name), steps=steps)
    out, data = Path(out), [Path(folder) for folder in data]
    record = train(recipe, out, data, threads)
    measured = measure(recipe, out, record, data)
    zoo.register(out.name, measured, out.parent)
    return measured
