"""What a task is: labelled pictures with class names and prompts, opened when asked for."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Labelled pictures; a picture is decoded when it is asked for."""

    labels: Tensor
    """Class indices (samples,), int64."""
    picture: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)


@runtime_checkable  # beartype checks it in the tests
class Sizes(Protocol):
    """Samples by split. Not a mapping: looking into one may need a download."""

    def __getitem__(self, split: str, /) -> int: ...


@dataclass(frozen=True)
class Task:
    """A classification task; its pictures are opened when they are asked for."""

    name: str
    class_names: tuple[str, ...]
    prompts: tuple[str, ...]
    """Templates with one `{}` for the class name."""
    revision: str
    """Changes whenever the data do."""
    sizes: Sizes
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
