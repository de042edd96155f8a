"""Builds one model of the zoo from nothing but its recipe."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from bico.models import zoo
from zoo_build.builders import BUILDERS, builder, family


@task(name="train", cache_policy=NO_CACHE)
def train(kind: str, recipe: Any, folder: Path, data: Sequence[Path], threads: int) -> dict[str, Any]:
    return BUILDERS[kind].train(recipe, folder, data, threads)


@task(name="measure", cache_policy=NO_CACHE)
def measure(kind: str, recipe: Any, folder: Path, record: dict[str, Any], data: Sequence[Path]) -> dict[str, Any]:
    return BUILDERS[kind].measure(recipe, folder, record, data)


def check(name: str, data: Sequence[Path]) -> None:
    """Raises what would make the flow fail for want of a recipe or a corpus."""
    found = builder(name)
    found.check(found.load(zoo.recipe(name)), data)


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
    recipe = builder(name).load(zoo.recipe(name))
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    out, data = Path(out), [Path(folder) for folder in data]
    record = train(family(name), recipe, out, data, threads)
    measured = measure(family(name), recipe, out, record, data)
    zoo.register(out.name, measured, out.parent)
    return measured
