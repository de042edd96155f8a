"""What the steps that train have in common: the bounds of their settings, and calibration samples as rows to draw from."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from bico.calibration.covariances import Batch
from bico.errors import CalibrationError, ConfigError
from bico.last_steps.protocol import LastStep
from bico.models.protocol import Model

Rows = Sequence[tuple[Tensor, Tensor]]
"""Inputs and class of every sample."""


def check_settings(step: LastStep, lr: float, seed: int, **counts: int) -> None:
    """Raises ConfigError where training could not go by a step's settings.

    Arguments:
        counts: The settings that are one or more, by name.
    """
    if min(counts.values()) < 1 or not 0 < lr < math.inf or not 0 <= seed < 2**63:
        wanted = ", ".join(f"{name} >= 1" for name in counts)
        raise ConfigError(f"{step.name} needs {wanted}, a finite lr > 0 and seed >= 0, got {step}.")


def rows_for(name: str, batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
    """Inputs and class of every sample; of soft targets the likeliest class.

    Raises:
        CalibrationError: If there is no sample to train on.
    """
    rows = [
        (inputs, target if target.ndim == 0 else target.argmax())
        for batch in batches
        for inputs, target in zip(batch.target, batch.labels, strict=True)
    ]
    if not rows:
        raise CalibrationError(f"{name} needs samples, and there are none: raise --samples or --unlabelled.")
    return rows


def stacked(target: Model, rows: Rows, indices: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
    """Inputs and labels of some samples, as a batch."""
    chosen = [rows[int(index)] for index in indices]
    return target.stack([inputs for inputs, _ in chosen]), torch.stack([label for _, label in chosen])
