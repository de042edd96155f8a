"""Tasks of classes as texts to complete: a table of prompts and answers for each, as `bico rehome --data` reads them."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from bico.data.tasks import get_task

TASKS = ("trec", "subj", "snli")
MOST = {"train": 5000, "test": 150}
"""Rows at most, drawn once: there are hundreds of cells, and each is measured on all rows of its test split."""
SEED = 0


def write(task: str, data: Path, folder: Path) -> Path:
    """Writes the prompts and completions of a task, unless they are there, and returns where.

    Arguments:
        data: A folder that holds a folder per task.
        folder: Where a folder of the task's name goes.
    """
    (place := folder / task).mkdir(parents=True, exist_ok=True)
    for split, most in MOST.items():
        if (file := place / f"{split}.jsonl").is_file():
            continue
        rows = list(_rows(task, data / task, split))
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))[:most].tolist()
        (half := file.with_suffix(".part")).write_text("".join(json.dumps(rows[row]) + "\n" for row in drawn))
        half.rename(file)
    return place


def _rows(task: str, folder: Path, split: str) -> Iterator[dict[str, str]]:
    """The forms of `bico.data.text`, and a word that asks for the class."""
    found = get_task(task, [folder])
    opened = found.open(split)
    for row, label in enumerate(opened.labels.tolist()):
        yield {"prompt": f"{opened.example(row)} answer:", "completion": f" {found.class_names[label]}"}
