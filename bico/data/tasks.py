"""Classification tasks: pictures, labels, class names and prompts, by name.

Embedded tasks need no files: `digits` (scikit-learn's scanned handwritten digits) and the generated ones. A folder
of parquet files (`train.parquet`, `test.parquet`, in the format of `datasets`) is a task too.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bico.data import embedded
from bico.errors import UnknownTaskError, nearest

PROMPTS: dict[str, tuple[str, ...]] = {
    # Prompts of the eight-task benchmark (Ilharco et al., 2023), for those of its data sets that are seen here.
    "mnist": ('a photo of the number: "{}".',),
    "digits": ('a photo of the number: "{}".',),
    "gtsrb": (
        'a zoomed in photo of a "{}" traffic sign.',
        'a centered photo of a "{}" traffic sign.',
        'a close up photo of a "{}" traffic sign.',
    ),
}
DEFAULT_PROMPTS = ("a photo of a {}.",)


@dataclass(frozen=True)
class Split:
    """Labelled pictures; a picture is decoded when it is asked for."""

    labels: Tensor
    """Class indices (samples,), int64."""
    picture: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """A classification task; its pictures are opened when they are asked for."""

    name: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    """Templates with one `{}` for the class name."""
    revision: str
    """Changes whenever the data do."""
    sizes: Mapping[str, int]
    """Samples of the splits `train` and `test`."""
    open: Callable[[str], Split]

    @property
    def identity(self) -> dict[str, object]:
        """What determines results on this task, as JSON: for cache keys and records."""
        return {
            "name": self.name,
            "classes": list(self.class_names),
            "prompts": list(self.prompts),
            "revision": self.revision,
        }


def get_task(name: str, folders: Sequence[Path] = ()) -> Task:
    """Returns a task by name; a folder's name is the name of its task.

    Raises:
        UnknownTaskError: If no such task is embedded and no folder has that name.
    """
    by_name = {folder.resolve().name: folder.resolve() for folder in map(Path, folders)}
    if name in by_name:
        return from_parquet(by_name[name])
    if name in EMBEDDED:
        return EMBEDDED[name]
    raise UnknownTaskError(
        f"Unknown task {name!r}: {nearest(name, [*EMBEDDED, *by_name])} Other data come in by --data FOLDER with "
        "train.parquet and test.parquet."
    )


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
    PROMPTS["digits"],
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


@cache
def from_parquet(folder: Path) -> Task:
    """A task from `train.parquet` and `test.parquet` with columns `image` and `label` (a `ClassLabel`).

    Raises:
        UnknownTaskError: If files or columns are missing.
    """
    import datasets  # seconds to import, and only needed here

    files = {split: folder / f"{split}.parquet" for split in ("train", "test")}
    rows = {}
    for split, path in files.items():
        if not path.is_file():
            raise UnknownTaskError(
                f"--data {folder}: no {path.name} there; a task folder holds train.parquet and test.parquet."
            )
        rows[split] = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
        columns = rows[split].features
        if "image" not in columns or not isinstance(columns.get("label"), datasets.ClassLabel):
            raise UnknownTaskError(
                f"--data {path}: needs a column `image` and a column `label` of type ClassLabel, has {list(columns)}."
            )
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files.values()))

    @cache
    def open_split(split: str) -> Split:
        return Split(torch.tensor(rows[split]["label"][:]), lambda index: rows[split][index]["image"])

    return Task(
        folder.name,
        tuple(name.replace("_", " ") for name in rows["train"].features["label"].names),
        PROMPTS.get(folder.name, DEFAULT_PROMPTS),
        digest.hexdigest(),
        {split: len(part) for split, part in rows.items()},
        open_split,
    )


EMBEDDED: dict[str, Task] = {"digits": digits} | {name: generated(name) for name in embedded.TASKS}


class Prepared:
    """A split as one model wants it: each picture is preprocessed at most once and kept while memory allows."""

    BUDGET = 1 << 30
    """Bytes of preprocessed pictures that one split may keep."""

    def __init__(self, split: Split, prepare: Callable[[Sequence[Image.Image]], Tensor]) -> None:
        self.split, self._prepare = split, prepare
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns prepared inputs (batch, ...) and labels (batch,) of the given samples."""
        rows = [self._row(int(index)) for index in indices]
        return torch.stack(rows), self.split.labels[indices]

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the split in order, up to the first `limit` samples."""
        for indices in torch.arange(len(self) if limit is None else min(limit, len(self))).split(size):
            yield self.batch(indices)

    def _row(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        row = self._prepare([self.split.picture(index)])[0]
        if self._bytes + row.nbytes <= self.BUDGET:
            self._kept[index] = row
            self._bytes += row.nbytes
        return row


def _from_array(pictures: np.ndarray) -> Callable[[int], Image.Image]:
    return lambda index: Image.fromarray(pictures[index])
