"""The expert as a kind: its predictions stand in for labels, for the losses of both pre-trained models."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bico.evaluation.predictions import check_scores, predicted
from bico.models.protocol import Model


class PseudoLabels(StrEnum):
    """What of the expert's predictions becomes the target of the loss."""

    HARD = "hard"
    """The class with the highest score, as if it were a label."""
    SOFT = "soft"
    """The probabilities of all classes."""


@torch.no_grad()
def expert_scores(
    source: Model, tau: Mapping[str, Tensor], batches: Iterable[Tensor], head: Tensor
) -> Float[Tensor, "samples classes"]:
    """Returns the class scores of the source with its task vector.

    Arguments:
        tau: The source's task vector.
        batches: Inputs as the source wants them (batch, ...).
        head: The source's classification head.

    Raises:
        CalibrationError: If a score is not finite.
    """
    with source.updated(tau):
        return check_scores(
            torch.cat([source.logits(inputs, head) for inputs in batches]), f"the expert of {source.name}"
        )


def pseudo_labels(scores: Float[Tensor, "samples classes"], kind: PseudoLabels = PseudoLabels.HARD) -> Tensor:
    """Returns targets of a cross-entropy loss: class indices (samples,), or probabilities (samples, classes).

    Raises:
        CalibrationError: If a score is not finite.
    """
    if PseudoLabels(kind) is PseudoLabels.SOFT:
        return check_scores(scores, "an expert").softmax(dim=1)
    return predicted(scores, "an expert")
