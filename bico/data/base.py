"""What a task is: labelled pictures or texts with class names and prompts, opened when asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from bico.errors import ConfigError, DataError


@dataclass(frozen=True)
class Split:
    """Labelled pictures or texts; each is read when it is asked for."""

    labels: Tensor
    """Class indices (samples,), int64."""
    example: Callable[[int], Any]
    """A PIL picture, or a string."""

    def __len__(self) -> int:
        return len(self.labels)


@runtime_checkable  # beartype checks it in the tests
class Sizes(Protocol):
    """Samples by split. Not a mapping: looking into one may need a download."""

    def __getitem__(self, split: str, /) -> int: ...


@dataclass(frozen=True)
class Task:
    """A classification task; its examples are read when they are asked for."""

    name: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    """Of pictures: templates with one `{}` for the class name. Of texts: how an example is put, once."""
    revision: str
    """Changes whenever the data do."""
    sizes: Sizes
    """Samples of the splits `train` and `test`."""
    open: Callable[[str], Split]
    modality: str = "picture"
    """What its examples are: "picture" or "text"."""
    about: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What else determines its examples: columns, a drawn test split, how pictures are decoded; empty where nothing was
    chosen."""
    notes: tuple[str, ...] = ()
    """What should be said of how it was read."""

    @property
    def identity(self) -> dict[str, object]:
        """What determines results on this task, as JSON: for cache keys and records."""
        return {
            "name": self.name,
            "classes": list(self.class_names),
            "prompts": list(self.prompts),
            "revision": self.revision,
            **self.about,
        }


T = TypeVar("T")


def held_out(rows: Sequence[T], share: float | None, seed: int, where: str) -> tuple[list[T], list[T]]:
    """A single split, and the part of it that is kept for testing.

    Arguments:
        share: Of the rows, between 0 and 1.
        where: How messages call the data.

    Raises:
        DataError: If one of the two would be empty.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = round(len(rows) * (share or 0.0))
    if not 0 < count < len(rows):
        raise DataError(f"{where}: of {len(rows)} rows a share of {share} leaves nothing to train or to test on.")
    return [rows[row] for row in sorted(order[count:])], [rows[row] for row in sorted(order[:count])]


def check_modality(task: Task, model: str, modality: str) -> None:
    """Raises ConfigError unless a model reads what a task shows."""
    if task.modality != modality:
        raise ConfigError(
            f"{model} reads {modality}s, and the examples of task {task.name!r} are {task.modality}s: choose a model or a "
            "task of the other kind."
        )


class Prepared:
    """A split as one model wants it: each example is preprocessed at most once and kept while memory allows."""

    BUDGET = 1 << 30
    """Bytes of preprocessed examples that one split may keep."""

    def __init__(
        self,
        split: Split,
        prepare: Callable[[Sequence[Any]], Tensor],
        stack: Callable[[list[Tensor]], Tensor] = torch.stack,
    ) -> None:
        """Arguments:
        prepare: The model's `prepare`.
        stack: The model's `stack`, where examples differ in shape.
        """
        self.split, self._prepare, self._stack = split, prepare, stack
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.split)

    @property
    def kept_bytes(self) -> int:
        """Of the preprocessed examples that it keeps now."""
        return self._bytes

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Returns prepared inputs (batch, ...) and labels (batch,) of the given samples."""
        rows = [self._row(int(index)) for index in indices]
        return self._stack(rows), self.split.labels[indices]

    def batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the split in order, up to the first `limit` samples."""
        for indices in torch.arange(len(self) if limit is None else min(limit, len(self))).split(size):
            yield self.batch(indices)

    def _row(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        row = self._prepare([self.split.example(index)])[0]
        if self._bytes + row.nbytes <= self.BUDGET:
            self._kept[index] = row
            self._bytes += row.nbytes
        return row
