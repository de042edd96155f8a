"""Builds one model of the zoo from nothing but its recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from bico import zoo
from bico.pretrain import Recipe, run
from bico.zoo_measure import entry


@task(name="train", cache_policy=NO_CACHE)
def train(recipe: Recipe, folder: Path, threads: int) -> dict[str, Any]:
    return run(recipe, folder, threads=threads)


@task(name="measure", cache_policy=NO_CACHE)
def measure(recipe: Recipe, folder: Path, record: dict[str, Any], data: Sequence[Path]) -> dict[str, Any]:
    return entry(recipe, folder, record, data)


@flow(name="pretrain", validate_parameters=False)
def pretrain(name: str, out: Path, data: Sequence[Path] = (), threads: int = 1) -> dict[str, Any]:
    """Pre-trains a model by its recipe and writes it, with its measurements.

    Arguments:
        name: A recipe of the zoo.
        out: The model's directory; its measurements go into `manifest.json` beside it.
        data: Folders of further tasks to measure zero-shot accuracy on.
        threads: How many threads torch may use.

    Returns:
        The model's entry in the manifest.

    Raises:
        UnknownModelError: If the zoo has no such recipe.
        ConfigError: If the fonts that the recipe's pictures need are not installed.
    """
    recipe = Recipe.load(zoo.recipe(name))
    out = Path(out)
    record = train(recipe, out, threads)
    measured = measure(recipe, out, record, [Path(folder) for folder in data])
    zoo.register(out.name, measured, out.parent)
    return measured
