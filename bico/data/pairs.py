"""Tasks of text pairs without classes, from folders: pairs that belong together, or pairs with a score of how alike they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bico.data.base import Split, Task
from bico.data.columns import LABELS, PAIRS, string_columns
from bico.data.folders import task_name
from bico.data.reading import NOTHING_SAID, Reading, read_task_file
from bico.data.text import Pair
from bico.data.without_classes import read_rows, task_named
from bico.errors import ConfigError, DataError, UnknownTaskError

if TYPE_CHECKING:
    from datasets import Dataset

TOGETHER = (("anchor", "positive"), ("query", "answer"), ("question", "answer"), *PAIRS)
"""Columns of texts that belong together, by names that they often have."""
SCORES = ("score", "similarity", "similarity_score", "relatedness_score")
"""Columns of scores, the likeliest first."""
SPLITS = ("train", "test")


@dataclass(frozen=True)
class PairColumns:
    """What each column is for."""

    first: str
    second: str
    score: str | None
    """How alike the texts are; None where they belong together."""


@cache
def pairs_from_folder(folder: Path, reading: Reading = NOTHING_SAID) -> Task:
    """A task of pairs; it has no classes. Labels of its splits are scores (float32), or groups (int64) of pairs that share a
    text, directly or through others, and so are not to be told from each other.

    Scores outside of -1 to 1 are brought to 0 to 1 by the smallest and the largest of the training split; the task's notes
    say so.

    Arguments:
        reading: What options say; it wins over the folder's `task.yaml`. The text columns are two; the label column is that
            of the scores.

    Raises:
        UnknownTaskError: If files or columns are missing, or nothing says which to take.
        DataError: If a file is damaged, a text or a score is missing, or there is nothing to tell apart.
        ConfigError: If something is said that pairs have not.
    """
    reading, where, name = reading.over(read_task_file(folder)), f"--data {folder}", task_name(folder)
    if said := {"image_column", "prompts", "class_names"} & set(reading.said):
        raise ConfigError(f"{where}: loss=pairs reads two texts and no classes: leave out {min(said)}.")
    read = read_rows(folder, reading, where, find_pair_columns, _rows)
    columns, rows = read.columns, read.of
    bounds, notes = _bounds(rows["train"], columns, where)
    labels = {split: _labels(part, columns, bounds, f"{where}: the {split} split") for split, part in rows.items()}
    about = {"pairs": [columns.first, columns.second], "score": columns.score} | read.about
    if bounds is not None:
        about["score_range"] = list(bounds)
    sizes = {split: len(part) for split, part in rows.items()}

    def opened(split: str) -> Split:
        return Split(labels[split], lambda index: rows[split][index][0])

    said_of_it = tuple(filter(None, (read.note, notes)))
    return Task(name, (), (), read.digest, sizes, opened, "text", about, said_of_it)


def find_pair_columns(table: "Dataset", reading: Reading, where: str) -> PairColumns:
    """Finds the two columns of texts, and that of scores.

    Raises:
        UnknownTaskError: If there are none, or a column may be classes.
    """
    listed = list(table.features)
    for named in filter(None, (reading.label_column, *reading.text_columns)):
        if named not in listed:
            raise UnknownTaskError(f"{where}: no column is called {named!r}; there are {listed}.")
    texts = reading.text_columns or next((pair for pair in TOGETHER if set(pair) <= set(string_columns(table))), ())
    if len(texts) != 2:
        raise UnknownTaskError(
            f"{where}: loss=pairs needs two columns of text, and {listed} are none that are known: name them by --text-columns."
        )
    score = reading.label_column or next((name for name in SCORES if name in listed), None)
    unclear = next((name for name in LABELS if name in listed and name not in texts), None)
    if score is None and unclear is not None:
        raise UnknownTaskError(
            f"{where}: `{unclear}` may say that texts do not belong together: name it by --label-column if it is their score, or "
            "leave it and such rows out."
        )
    return PairColumns(texts[0], texts[1], score)


Rows = list[tuple[Pair, float]]
"""Pairs and their scores; 1 where there are none."""


def _rows(table: "Dataset", columns: PairColumns, where: str) -> Rows:
    for column in filter(None, (columns.first, columns.second, columns.score)):
        if column not in table.features:
            raise UnknownTaskError(f"{where} has no column {column!r}, but {list(table.features)}.")
    texts = [list(table[column][:]) for column in (columns.first, columns.second)]
    scores: Sequence[Any] = [1.0] * len(table) if columns.score is None else list(table[columns.score][:])
    found = []
    for row, (first, second, score) in enumerate(zip(*texts, scores, strict=True)):
        if not all(isinstance(text, str) and text.strip() for text in (first, second)):
            raise DataError(f"{where}: row {row} (from 0) lacks one of its two texts: fill it or leave it out.")
        found.append((Pair(first, second), _number(score, columns, f"{where}: row {row} (from 0)")))
    return found


def _number(cell: Any, columns: PairColumns, where: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{where}: `{columns.score}` must be a number, and is {str(cell)[:40]!r}: fill it or leave it out."
        )
    return value


def _bounds(rows: Rows, columns: PairColumns, where: str) -> tuple[tuple[float, float] | None, str]:
    """By what scores are brought to 0 to 1, if they have to be, and what to say of it."""
    if not rows or columns.score is None:
        return None, ""
    low, high = min(score for _, score in rows), max(score for _, score in rows)
    if low >= -1 and high <= 1:
        return None, ""
    return (low, high), f"{where}: scores from {low:g} to {high:g} are brought to 0 to 1."


def _labels(rows: Rows, columns: PairColumns, bounds: tuple[float, float] | None, where: str) -> Tensor:
    if columns.score is not None:
        scores = torch.tensor([score for _, score in rows], dtype=torch.float64)
        if len(scores.unique()) < 2:
            raise DataError(f"{where}: `{columns.score}` is the same in all rows, so no order of them can be right.")
        low, high = bounds or (0.0, 1.0)
        return ((scores - low) / (high - low)).float()
    groups = groups_of([pair for pair, _ in rows])
    if len(groups.unique()) < 2:
        raise DataError(f"{where}: all pairs share texts, so there are none to tell a pair from.")
    return groups


def groups_of(pairs: Sequence[Pair]) -> Tensor:
    """Numbers (pairs,) of the groups of pairs that share a text at the same place: the row of the group's first pair.

    Example:
        >>> groups_of([Pair("a", "x"), Pair("b", "y"), Pair("a", "z"), Pair("c", "z")]).tolist()
        [0, 1, 0, 0]
    """
    parent = list(range(len(pairs)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    seen: dict[tuple[int, str], int] = {}
    for row, pair in enumerate(pairs):
        for key in ((0, pair.first), (1, pair.second)):
            one, other = sorted((root(row), root(seen.setdefault(key, row))))
            parent[other] = one
    return torch.tensor([root(row) for row in range(len(pairs))], dtype=torch.int64)


def get_pairs(name: str, folders: Mapping[str, Path], reading: Reading = NOTHING_SAID) -> Task:
    """Returns a task of pairs by name.

    Arguments:
        folders: Folders of data by the names of their tasks.

    Raises:
        UnknownTaskError: If none is its.
    """
    return task_named(name, folders, reading, pairs_from_folder, "pairs", "pairs of texts")
