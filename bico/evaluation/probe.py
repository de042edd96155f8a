"""Linear probes: how well a linear classifier does on a frozen model's features (BiCo, table 2)."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bico.evaluation.accuracy import percent_right
from bico.evaluation.linear_head import LinearHead
from bico.linalg.logistic import logistic
from bico.models.protocol import Model


def fit_probe(features: Float[Tensor, "samples features"], labels: Int[Tensor, " samples"], classes: int) -> LinearHead:
    """Returns a linear classifier of features: logistic regression on standardised ones.

    Mean, scale and penalty (`bico.linalg.logistic`: by cross-validation) come from these samples and no others, so the probe of
    a calibration set knows that set alone. Deterministic.

    Raises:
        CalibrationError: If there are fewer than two samples, or features are not finite.
    """
    wide = features.double()
    mean, scale = wide.mean(0), wide.std(0, correction=0)
    varies = ~(scale <= 1e-9 * scale.max())  # a constant feature says nothing, and has no scale
    fitted = logistic(((wide - mean) / scale)[:, varies], labels, classes)
    weight = wide.new_zeros(wide.shape[1], classes)
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


def as_head(probe: LinearHead) -> Float[Tensor, "classes columns"]:
    """Returns a linear classifier of features as a head in which a model takes its loss: weights, and the bias in the last
    column.
    """
    return torch.cat([probe.weight.T, probe.bias[:, None]], dim=1)
