"""The registry of classification tasks: pictures or texts, labels, class names and prompts, by name.

Embedded tasks need no files: `digits` (scikit-learn's scanned handwritten digits) and the generated ones. A folder
(`folders`) is a task by its own name and with its own class names; `hub:NAME` is a data set of the eight-task benchmark
(`hub`), with the benchmark's class names, or one of GLUE's and SNLI (`text_hub`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bico.data import embedded
from bico.data.base import Prepared, Split, Task
from bico.data.folders import from_folder, task_name
from bico.data.hub import HUB, PREFIX, from_hub
from bico.data.reading import NOTHING_SAID, Reading
from bico.data.text_hub import TEXT_HUB, from_text_hub
from bico.data.vision8 import PROMPTS
from bico.errors import ConfigError, UnknownTaskError, nearest

__all__ = ["EMBEDDED", "Prepared", "Split", "Task", "all_tasks", "check_folders", "folders_by_task", "get_task"]


def get_task(name: str, folders: Sequence[Path] = (), reading: Reading = NOTHING_SAID) -> Task:
    """Returns a task by name.

    A plain name is a folder's, an embedded task's, or a data set's of the hub, whichever comes first. `hub:NAME` is
    always the benchmark's data set: a folder of that name then is its local copy.

    Arguments:
        folders: Folders of data, or single tables.
        reading: What options say of the folder that the task is read from.

    Raises:
        UnknownTaskError: If no folder, embedded task or data set has that name.
        ConfigError: If two folders have one name.
        DataError: If its data cannot be read.
    """
    by_name = folders_by_task(folders)
    if name.startswith(PREFIX):
        plain = name.removeprefix(PREFIX)
        return (from_text_hub if plain in TEXT_HUB else from_hub)(plain, by_name.get(plain), reading)
    if name in by_name:
        return from_folder(by_name[name], reading)
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in HUB:
        return from_hub(name)
    if name in TEXT_HUB:
        return from_text_hub(name)
    raise UnknownTaskError(
        f"Unknown task {name!r}: {nearest(name, [*EMBEDDED, *by_name, *HUB, *TEXT_HUB])} Other data come in by --data FOLDER; "
        "the folder's name is the task's."
    )


def folders_by_task(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns folders of data by the names of their tasks.

    Raises:
        ConfigError: If two have one name: one of them would be ignored.
    """
    by_name: dict[str, Path] = {}
    for folder in (Path(folder).resolve() for folder in folders):
        name = task_name(folder)
        if by_name.setdefault(name, folder) != folder:
            raise ConfigError(
                f"Two --data folders are called {name!r}, {by_name[name]} and {folder}: rename one of them."
            )
    return by_name


def check_folders(tasks: Sequence[str], folders: Sequence[Path], reading: Reading = NOTHING_SAID) -> None:
    """Raises ConfigError if a folder, or what options say of one, serves no task: it would be ignored."""
    by_name = folders_by_task(folders)
    for name, folder in by_name.items():
        if name not in {task.removeprefix(PREFIX) for task in tasks}:
            raise ConfigError(
                f"--data {folder} serves no task: its task is {name!r}, and the tasks are {', '.join(tasks)}. Name it by --task, "
                "or leave the folder out."
            )
    if reading.said and len(by_name) != 1:
        key = next(iter(reading.said))
        raise ConfigError(
            f"{key} says how a --data folder is read, and there are {len(by_name)}: give one folder, or write it into each "
            "folder's task.yaml."
        )


def all_tasks(folders: Sequence[Path] = ()) -> list[str]:
    """Returns the names of all tasks that need no download: the embedded ones, and the folders'."""
    return list(dict.fromkeys([*EMBEDDED, *folders_by_task(folders)]))


@cache
def _open_digits(split: str) -> Split:
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    bunch = load_digits()
    part = slice(None, DIGITS["train"]) if split == "train" else slice(DIGITS["train"], None)
    grey = (bunch.images[part] * (255 / 16)).round().astype(np.uint8)
    return Split(torch.from_numpy(bunch.target[part].astype(np.int64)), _from_array(grey))


DIGITS = {"train": 1297, "test": 500}
"""scikit-learn keeps the original order, so the last 500 come from other writers than most of the rest."""

digits = Task(
    # Scanned handwritten digits, 8x8: the UCI test set of Alpaydin and Kaynak (1998), as scikit-learn ships it.
    "digits",
    tuple(str(n) for n in range(10)),
    PROMPTS["mnist"],
    "sklearn-load_digits-1797",
    DIGITS,
    _open_digits,
)


GENERATED = 3
"""Revision of the generated tasks; raise it when the generator draws other pictures (a test pins them)."""


def generated(name: str) -> Task:
    """A task drawn by the picture generator in a style that no zoo model was trained on."""
    drawn, sizes = embedded.TASKS[name], {"train": 3000, "test": 500}

    @cache
    def open_split(split: str) -> Split:
        pictures, labels = drawn.render(split, sizes[split], seed=0)
        return Split(torch.as_tensor(labels, dtype=torch.int64), _from_array(pictures))

    return Task(name, tuple(drawn.class_names), tuple(drawn.templates), f"generated-{GENERATED}", sizes, open_split)


EMBEDDED: dict[str, Task] = {"digits": digits} | {name: generated(name) for name in embedded.TASKS}


def _from_array(pictures: np.ndarray) -> Callable[[int], Image.Image]:
    return lambda index: Image.fromarray(pictures[index])
