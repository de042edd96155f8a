"""Linear probes: how well a linear classifier does on a frozen model's features (BiCo, table 2)."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bico.evaluation.accuracy import percent_right
from bico.evaluation.linear_head import LinearHead
from bico.linalg.logistic import held_out_losses, logistic
from bico.models.protocol import Model


def fit_probe(features: Float[Tensor, "samples features"], labels: Int[Tensor, " samples"], classes: int) -> LinearHead:
    """Returns a linear classifier of features: logistic regression on standardised ones.

    Mean, scale and penalty (`bico.linalg.logistic`: by cross-validation) come from these samples and no others, so the probe of
    a calibration set knows that set alone. Deterministic.

    Raises:
        CalibrationError: If there are fewer than two samples, or features are not finite.
    """
    unit, mean, scale, varies = _standardised(features)
    fitted = logistic(unit, labels, classes)
    weight = unit.new_zeros(len(mean), classes)
    weight[varies] = fitted.weight / scale[varies, None]
    return LinearHead(weight.to(features), (fitted.bias - mean @ weight).to(features))


@torch.no_grad()
def probe_accuracy(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    probe: LinearHead,
    on_batch: Callable[[int], None] = lambda seen: None,
) -> float:
    """Returns the share of samples whose highest score by a probe of the model's features is the label's, in percent.

    A probe reads the features that it was fitted on, behind the projection where there is one; a linear head that
    takes the projection's place reads what the projection reads (`linear_head_accuracy`).

    Arguments:
        batches: Pairs of prepared inputs (batch, ...) and labels (batch,).

    Raises:
        ShapeError: If there are no samples.
        CalibrationError: If a score is not finite.
    """
    return percent_right(
        lambda inputs: probe.scores(model.features(inputs)), batches, on_batch, f"a probe of {model.name}"
    )


def probe_losses(
    features: Float[Tensor, "samples features"], labels: Int[Tensor, " samples"], classes: int
) -> Float[Tensor, " samples"]:
    """Returns the cross-entropy of every sample, in nats, by a probe that was fitted on the others (four folds), at the
    penalty that is best on average.

    Raises:
        CalibrationError: If there are fewer than two samples, or features are not finite.
    """
    losses = held_out_losses(_standardised(features)[0], labels, classes)
    return losses[losses.sum(1).argmin()]


def as_head(probe: LinearHead) -> Float[Tensor, "classes columns"]:
    """Returns a linear classifier of features as a head in which a model takes its loss: weights, and the bias in the last
    column.
    """
    return torch.cat([probe.weight.T, probe.bias[:, None]], dim=1)


def _standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of unit variance in float64, without constant ones, which say nothing; mean, scale, and which ones vary."""
    wide = features.double()
    mean, scale = wide.mean(0), wide.std(0, correction=0)
    varies = ~(scale <= 1e-9 * scale.max())
    return ((wide - mean) / scale)[:, varies], mean, scale, varies
