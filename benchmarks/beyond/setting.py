"""Where a cell of the study stands, and which of its samples a recipe may look at."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

import torch
from torch import Tensor

from bico.calibration.budget import Budget


@dataclass(frozen=True)
class Setting:
    """Which cell."""

    source: str
    target: str
    task: str
    strength: int
    """Fine-tuning steps of the expert."""
    expert: int
    """Seed of its fine-tuning."""
    seed: int
    """Of the calibration draw."""
    labels: int
    """Samples drawn with labels."""
    unlabelled: int
    """Inputs drawn without."""

    @classmethod
    def parse(cls, record: Mapping[str, str]) -> "Setting":
        """Reads it from a line of the study's files."""
        return cls(*(record[f.name] if f.type is str else int(record[f.name]) for f in fields(cls)))

    @property
    def pair(self) -> str:
        return f"{self.source} → {self.target}"


class Data(StrEnum):
    """Which of a cell's samples a recipe looks at."""

    LABELLED = "labelled"
    UNLABELLED = "unlabelled"
    """With the expert's predictions for labels."""
    MIXED = "mixed"
    """Both."""
    SOFT = "soft"
    """Both, with the expert's probabilities in place of its predictions."""

    @property
    def has_labelled(self) -> bool:
        return self is not Data.UNLABELLED

    @property
    def has_unlabelled(self) -> bool:
        return self is not Data.LABELLED

    def budget(self, setting: Setting) -> Budget:
        """How many these are in a cell."""
        return Budget(setting.labels * self.has_labelled, setting.unlabelled * self.has_unlabelled)


@dataclass(frozen=True)
class Draw:
    """What a cell calibrates with: places in the pool."""

    labelled: Tensor
    unlabelled: Tensor

    @classmethod
    def of(cls, pool: int, labels: int, unlabelled: int, seed: int) -> "Draw":
        """Larger draws hold the smaller ones: labelled places come from the front of an order, others from its end."""
        order = torch.randperm(pool, generator=torch.Generator().manual_seed(seed))
        return cls(order[:labels], order[max(labels, pool - unlabelled) :].flip(0))

    def places(self, data: Data) -> Tensor:
        """Labelled ones first."""
        return torch.cat([self.labelled] * data.has_labelled + [self.unlabelled] * data.has_unlabelled)
