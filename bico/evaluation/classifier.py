"""An exported model with the classifier that came with it: from pictures or texts to names of classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import CheckpointError
from bico.evaluation.head_files import NamedHead, load_head
from bico.evaluation.linear_head import read
from bico.evaluation.predictions import predicted
from bico.models.files import HEAD_FILE
from bico.models.loading import load, resolve
from bico.models.protocol import Model

BATCH = 250


@dataclass(frozen=True)
class Classifier:
    """A model and a linear head on what its last projection reads (its features, where it has no projection)."""

    model: Model
    head: NamedHead

    @property
    def classes(self) -> tuple[str, ...]:
        return self.head.classes

    def scores(self, examples: Sequence[Any]) -> Float[Tensor, "examples classes"]:
        """Class scores of raw examples: pictures (PIL), or texts."""
        parts = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
        return self.head.head.scores(read(self.model, (self.model.prepare(part) for part in parts)).pooled)

    def __call__(self, examples: Sequence[Any]) -> list[str]:
        """Returns the name of a class for each example.

        Raises:
            CalibrationError: If a score is not finite.
            ShapeError: If there are no examples.
        """
        return [self.classes[index] for index in predicted(self.scores(examples), self.model.name).tolist()]


def load_classifier(folder: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Loads a model that was exported with a classifier, such as by `bico transfer --methods bico+head`.

    Raises:
        CheckpointError: If there is no model in the folder, no classifier beside it, or one of them is damaged.
    """
    files = resolve(str(folder))
    named = None if files.folder is None else load_head(files.folder)
    if named is None:
        raise CheckpointError(
            f"{folder} has no classifier of its own ({HEAD_FILE}): such models are exported by methods that end in +head; "
            "open any other with its own library."
        )
    return Classifier(load(files, device), named)
