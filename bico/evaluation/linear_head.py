"""What the last linear map of a model reads and gives, and classifiers on what it reads."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bico.calibration.signals import Signal, capture, signal_key
from bico.errors import ShapeError
from bico.evaluation.accuracy import percent_right
from bico.models.protocol import Calibratable, Model
from bico.models.sites import Site


@dataclass(frozen=True)
class Readings:
    """One model's view of some samples."""

    pooled: Float[Tensor, "samples pooled"]
    """What the last projection reads; the features themselves, where a model has no projection."""
    features: Float[Tensor, "samples features"]
    """Features before normalisation: the projection's outputs."""


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier on pooled inputs; it knows the classes of one task and no others."""

    weight: Float[Tensor, "pooled classes"]
    bias: Float[Tensor, " classes"]

    def scores(self, pooled: Float[Tensor, "samples pooled"]) -> Float[Tensor, "samples classes"]:
        return pooled @ self.weight.to(pooled) + self.bias.to(pooled)


def projection_of(model: Calibratable) -> Site | None:
    """Returns the site of the last projection, from pooled inputs to features, if the family has one."""
    return next((site for site in model.sites if site.block is None and site.role == "proj"), None)


@torch.no_grad()
def read(model: Model, batches: Iterable[Tensor]) -> Readings:
    """Reads samples by forward passes of the model, one per batch.

    Arguments:
        batches: Prepared inputs (batch, ...).

    Raises:
        ShapeError: If there are no samples.
    """
    site = projection_of(model)
    pooled, features = [], []
    for inputs in batches:
        if site is None:
            features.append(model.features(inputs).detach())
            pooled.append(features[-1])
            continue
        with model.instrument() as modules, capture([site], modules, [Signal.INPUT]) as seen:
            features.append(model.features(inputs).detach())
        pooled.append(seen[signal_key(site, Signal.INPUT)])
    if not features:
        raise ShapeError("There is nothing to read: no samples were given.")
    return Readings(torch.cat(pooled), torch.cat(features))


def linear_head_accuracy(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    linear_head: LinearHead,
    on_batch: Callable[[int], None] = lambda seen: None,
) -> float:
    """Returns the share of samples whose highest score is the label's, in percent.

    Arguments:
        batches: Pairs of prepared inputs (batch, ...) and labels (batch,).

    Raises:
        ShapeError: If there are no samples.
        CalibrationError: If a score is not finite.
    """
    return percent_right(lambda inputs: linear_head.scores(read(model, [inputs]).pooled), batches, on_batch, model.name)
