"""Linear probes: how well a linear classifier does on a frozen model's features (BiCo, table 2)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bico.evaluation.linear_head import LinearHead
from bico.linalg.logistic import logistic


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


def as_head(probe: LinearHead) -> Float[Tensor, "classes columns"]:
    """Returns a probe as a head in which a text model takes its loss: weights, and the bias in the last column."""
    return torch.cat([probe.weight.T, probe.bias[:, None]], dim=1)
