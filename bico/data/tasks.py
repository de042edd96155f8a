"""Classification tasks: pictures, labels, class names and prompts, by name.

Embedded tasks need no files: `digits` (scikit-learn's scanned handwritten digits) and the generated ones. A folder
of parquet files (`train.parquet`, `test.parquet`, in the format of `datasets`) is a task too.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bico.data import embedded
from bico.errors import NotEnoughSamplesError, UnknownTaskError, nearest

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
    name: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    """Templates with one `{}` for the class name."""
    revision: str
    """Changes whenever the data do."""
    train: Split
    test: Split


def get_task(name: str, folders: Sequence[Path] = ()) -> Task:
    """Returns a task by name; a folder's name is the name of its task.

    Raises:
        UnknownTaskError: If no such task is embedded and no folder has that name.
    """
    by_name = {folder.resolve().name: folder.resolve() for folder in map(Path, folders)}
    if name in by_name:
        return from_parquet(by_name[name])
    if name in EMBEDDED:
        return EMBEDDED[name]()
    raise UnknownTaskError(
        f"Unknown task {name!r}: {nearest(name, [*EMBEDDED, *by_name])} Other data come in by --data FOLDER with "
        "train.parquet and test.parquet."
    )


@cache
def digits() -> Task:
    """Scanned handwritten digits, 8x8, 1,797 of them, from the UCI test set of Alpaydin and Kaynak (scikit-learn).

    The last 500 are the test split: scikit-learn keeps the original order, so they come from other writers.
    """
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    bunch = load_digits()
    grey = (bunch.images * (255 / 16)).round().astype(np.uint8)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    cut = len(labels) - 500
    return Task(
        "digits",
        tuple(str(n) for n in range(10)),
        PROMPTS["digits"],
        _digest(grey),
        Split(labels[:cut], _from_array(grey[:cut])),
        Split(labels[cut:], _from_array(grey[cut:])),
    )


@cache
def generated(name: str) -> Task:
    """A task drawn by the picture generator in a style that no zoo model was trained on."""
    drawn = embedded.TASKS[name]
    (train, train_labels), (test, test_labels) = (
        drawn.render(split, count, seed=0) for split, count in (("train", 1500), ("test", 500))
    )
    return Task(
        name,
        tuple(drawn.class_names),
        tuple(drawn.templates),
        _digest(train, test),
        Split(torch.as_tensor(train_labels, dtype=torch.int64), _from_array(train)),
        Split(torch.as_tensor(test_labels, dtype=torch.int64), _from_array(test)),
    )


@cache
def from_parquet(folder: Path) -> Task:
    """A task from `train.parquet` and `test.parquet` with columns `image` and `label` (a `ClassLabel`).

    Raises:
        UnknownTaskError: If files or columns are missing.
    """
    import datasets  # seconds to import, and only needed here

    files = {split: folder / f"{split}.parquet" for split in ("train", "test")}
    for path in files.values():
        if not path.is_file():
            raise UnknownTaskError(f"--data {folder}: no {path.name} there; a task folder holds train.parquet and test.parquet.")
    splits, names = {}, ()
    for split, path in files.items():
        rows = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
        label = rows.features.get("label")
        if "image" not in rows.features or not isinstance(label, datasets.ClassLabel):
            raise UnknownTaskError(f"--data {path}: needs a column `image` and a column `label` of type ClassLabel, has {list(rows.features)}.")
        names = tuple(name.replace("_", " ") for name in label.names)
        splits[split] = Split(torch.tensor(rows["label"]), lambda index, rows=rows: rows[index]["image"])
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files.values()))
    prompts = PROMPTS.get(folder.name, DEFAULT_PROMPTS)
    return Task(folder.name, names, prompts, digest.hexdigest(), splits["train"], splits["test"])


EMBEDDED: dict[str, Callable[[], Task]] = {"digits": digits} | {
    name: partial(generated, name) for name in embedded.TASKS
}


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


def check_samples(task: Task, count: int) -> None:
    """Raises NotEnoughSamplesError if the training split holds fewer than `count` samples."""
    if count > len(task.train):
        raise NotEnoughSamplesError(
            f"{count} calibration samples asked for, but task {task.name!r} has {len(task.train)} training samples: "
            f"lower --samples to at most {len(task.train)}."
        )


def _from_array(pictures: np.ndarray) -> Callable[[int], Image.Image]:
    return lambda index: Image.fromarray(pictures[index])


def _digest(*arrays: np.ndarray) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
