"""What the manifest says about a model: measured here, never typed."""

import string
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from bico.data.tasks import EMBEDDED, Prepared, get_task
from bico.errors import CheckpointError
from bico.evaluation.accuracy import accuracy
from bico.models import zoo
from bico.models.clip.vit import ClipViT
from bico.models.loading import load, resolve
from zoo_build.clip import ClipPretraining
from zoo_build.pictures import draw_pool
from zoo_build.pictures.shapes import OUTLINES

HELD_OUT_SEED = 1_000_003
"""Added to a recipe's seed: pictures that its training never saw."""

HELD_OUT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "digit": (tuple(string.digits), ('a photo of the number: "{}".',)),
    "capital": (tuple(string.ascii_uppercase), ("the letter {}",)),
    "shape": (tuple(OUTLINES), ("a {}", "a drawing of a {}.")),
}
"""Kind of scene → class names and prompts of the held-out caption classification."""


def held_out_accuracy(model: ClipViT, recipe: ClipPretraining, pictures: int = 600) -> dict[str, float]:
    """Classifies new pictures of the model's own distribution by the captions that fit them.

    Arguments:
        model: The model.
        recipe: Its recipe: gives the distribution and the seed.
        pictures: How many pictures of each kind.

    Returns:
        Percent right for each kind of `HELD_OUT`, and their `mean`.
    """
    percent = {}
    for kind, (names, prompts) in HELD_OUT.items():
        pool = draw_pool(recipe.distribution, pictures, recipe.seed + HELD_OUT_SEED, kind=kind)
        labels = torch.tensor([names.index(scene.subject) for scene in pool.scenes])
        inputs = model.prepare([Image.fromarray(picture) for picture in pool.images])
        percent[kind] = round(accuracy(model, [(inputs, labels)], model.head(names, prompts)), 2)
    return percent | {"mean": round(sum(percent.values()) / len(percent), 2)}


def zero_shot(model: ClipViT, task_name: str, folders: Sequence[Path] = ()) -> float:
    """Returns the model's zero-shot accuracy on a task's test split, in percent.

    Raises:
        UnknownTaskError: If there is no such task.
    """
    task = get_task(task_name, folders)
    head = model.head(task.class_names, task.prompts)
    return round(accuracy(model, Prepared(task.open("test"), model.prepare).batches(250), head), 2)


def entry(recipe: ClipPretraining, model: Path, record: dict[str, Any], folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Measures a model and returns its entry in the manifest; accuracies are in percent.

    Arguments:
        recipe: What the model was built from.
        model: Its directory.
        record: How the building went, as `pretrain.run` returns it.
        folders: Folders of further tasks to measure zero-shot accuracy on, beside the embedded ones.
    """
    loaded = load(resolve(str(model)))
    if not isinstance(loaded, ClipViT):
        raise CheckpointError(f"{model} holds no CLIP: it cannot be measured by this recipe.")
    tasks = [*EMBEDDED, *(folder.name for folder in folders)]
    return {
        "recipe": asdict(recipe),
        "sha256": zoo.digest(model),
        "bytes": sum(path.stat().st_size for path in model.iterdir()),
        **record,
        "held_out": held_out_accuracy(loaded, recipe),
        "zero_shot": {name: zero_shot(loaded, name, folders) for name in tasks},
    }
