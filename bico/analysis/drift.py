"""How far the inputs of a model's layers move while it is fine-tuned."""

from collections.abc import Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor

from bico.analysis.records import Measurement, RowMeans, layer_of_tensors
from bico.calibration.covariances import collect_signals
from bico.calibration.meeting import real_rows
from bico.calibration.signals import Signal
from bico.models.protocol import Model


def input_drift(
    model: Model,
    vector: Mapping[str, Tensor],
    step: int,
    batches: Iterable[tuple[Tensor, Tensor]],
    head: Tensor,
) -> list[Measurement]:
    r"""Measures how layer inputs at one point of a fine-tuning trajectory differ from the pre-trained model's.

    Per row (samples x tokens), then averaged: direction :math:`1 - \cos(x_0, x_t)` and magnitude
    :math:`|\,\|x_t\| - \|x_0\|\,| / \|x_0\|`. Small drift is what lets BiCo take pre-trained activations for those of
    the whole trajectory (BiCo, appendix B; eq. A is lost in the published text, the magnitude is our reading of it).

    Arguments:
        model: At its pre-trained weights.
        vector: What fine-tuning has changed up to `step`.
        step: Optimiser steps taken.
        batches: Prepared inputs (batch, ...) and labels (batch,), one pass.
        head: Classification head (classes, features).

    Returns:
        Quantities "direction" and "magnitude" at `step`, for every tensor that a site reads.
    """
    drifts: RowMeans[tuple[str, str]] = RowMeans()
    for inputs, labels in batches:
        before = collect_signals(model, inputs, labels, head, model.sites, [Signal.INPUT])
        with model.updated(vector):
            after = collect_signals(model, inputs, labels, head, model.sites, [Signal.INPUT])
        mask = model.mask(inputs)
        for key, moved in after.items():
            start, now = real_rows(before[key], mask), real_rows(moved, mask)
            length = start.norm(dim=1)
            drifts.add(("direction", key[0]), 1 - F.cosine_similarity(start, now, dim=1))
            drifts.add(("magnitude", key[0]), (now.norm(dim=1) - length).abs() / length)
    at = layer_of_tensors(model.sites, [Signal.INPUT])
    return [
        Measurement(quantity, "fine-tuning", tensor, at[tensor], value, at=step)
        for (quantity, tensor), value in drifts.means().items()
    ]
