"""Accuracy of a model on a task."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bico.errors import ShapeError
from bico.evaluation.predictions import predicted
from bico.models.protocol import Model


@torch.no_grad()
def accuracy(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    head: Tensor,
    on_batch: Callable[[int], None] = lambda seen: None,
) -> float:
    """Returns the share of samples whose highest score is the label's, in percent.

    Arguments:
        batches: Pairs of prepared inputs (batch, ...) and labels (batch,).
        head: Classification head (classes, features).

    Raises:
        ShapeError: If there are no samples.
        CalibrationError: If a score is not finite.
    """
    return percent_right(lambda inputs: model.logits(inputs, head), batches, on_batch, model.name)


def percent_right(
    scores: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    on_batch: Callable[[int], None] = lambda seen: None,
    of: str = "a model",
) -> float:
    """Returns the share of samples whose highest score is the label's, in percent.

    Arguments:
        scores: From prepared inputs (batch, ...) to class scores (batch, classes).
        batches: Pairs of prepared inputs and labels (batch,).
        on_batch: Called with the number of samples seen so far.
        of: Whose scores they are, for messages.

    Raises:
        ShapeError: If there are no samples.
        CalibrationError: If a score is not finite.
    """
    right = seen = 0
    for inputs, labels in batches:
        right += int((predicted(scores(inputs), of).cpu() == labels).sum())
        seen += len(labels)
        on_batch(seen)
    if not seen:
        raise ShapeError("There is nothing to evaluate: the split has no samples.")
    return 100 * right / seen
