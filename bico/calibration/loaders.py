"""Calibration batches from what training code has at hand: data loaders, or data sets of torch."""

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bico.calibration.covariances import Batch
from bico.errors import CalibrationError

Pairs = Iterable[Any] | Dataset
"""Pairs of inputs and labels: batch by batch (a data loader), or sample by sample (a data set)."""


def batches(source: Pairs, target: Pairs | None = None, *, batch_size: int = 64) -> list[Batch]:
    """Returns the same samples as each of two models wants them, in the same order.

    Arguments:
        source: The samples for the source: a data loader that does not shuffle, or a data set; each item is a pair of
            inputs (a tensor, or tensors in a tuple, list or dictionary) and labels.
        target: The same samples for the target, where it wants them otherwise; by default it gets the source's.
        batch_size: Samples per batch of a data set; changes memory, never the result.

    Raises:
        CalibrationError: If an item is no pair, if there are no samples, or if the two have not the same labels in batches
            of the same sizes.
    """
    ours = _loader(source, batch_size)
    if target is None:
        found = [Batch(inputs, inputs, labels) for inputs, labels in map(_pair, ours)]
    else:
        found = []
        for number, (mine, yours) in enumerate(zip_longest(ours, _loader(target, batch_size))):
            if mine is None or yours is None:
                short = "source" if mine is None else "target"
                raise CalibrationError(
                    f"The {short}'s data end after {number} batches and the other model's go on: both models must see the "
                    "same samples, in batches of the same sizes."
                )
            (inputs, labels), (other, theirs) = _pair(mine), _pair(yours)
            if not torch.equal(labels, theirs):
                raise CalibrationError(
                    f"Batch {number} has other labels for the target than for the source: both models must see the same "
                    "samples in the same order; use shuffle=False and one batch size."
                )
            found.append(Batch(inputs, other, labels))
    if not found:
        raise CalibrationError("There is nothing to calibrate with: the data hold no samples.")
    return found


def _loader(data: Pairs, batch_size: int) -> Iterable[Any]:
    return DataLoader(data, batch_size=batch_size) if isinstance(data, Dataset) else data


def _pair(item: Any) -> tuple[Any, Tensor]:
    if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[1], Tensor):
        raise CalibrationError(
            f"An item of the calibration data is a {type(item).__name__}, not a pair of inputs and labels: give (inputs, "
            "labels), with several inputs in a tuple or dictionary of their own."
        )
    return item[0], item[1]
