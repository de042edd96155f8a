r"""Ridge regression in closed form, its penalty chosen by exact leave-one-out.

One factorisation serves every penalty: with the thin SVD :math:`X = U S V^\top`, the fit on the rows is
:math:`H Y` with :math:`H = U \frac{S^2}{S^2 + \lambda} U^\top`, and the residual of row i, had it been left out, is
:math:`(Y - HY)_i / (1 - H_{ii})`: no row is ever left out for real.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import CalibrationError, ConfigError

PENALTIES: tuple[float, ...] = (*(10 ** (e / 2) for e in range(-12, 7)), math.inf)
"""Candidates, as multiples of the mean of the diagonal of `XᵀX`, so that neither the scale nor the number of rows matters.
The last one gives zero weights: a fit that does not help unseen rows is no fit."""


@dataclass(frozen=True)
class Ridge:
    """A linear map from inputs to outputs, and how well it does on rows it has not seen."""

    weight: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, " outputs"]
    """Zero for a fit without one."""
    penalty: float
    """The one chosen, as a multiple of the mean diagonal."""
    error: float
    """Mean squared error of the left-out rows at that penalty, per entry."""
    total: float
    """The same for zero weights: what there was to explain."""

    @property
    def explained(self) -> float:
        """Share of what there was to explain that unseen rows get back, at most 1; 0 where there was nothing."""
        return 1 - self.error / self.total if self.total else 0.0


def ridge(
    x: Float[Tensor, "rows inputs"],
    y: Float[Tensor, "rows outputs"],
    penalties: Sequence[float] = PENALTIES,
    intercept: bool = False,
) -> Ridge:
    r"""Returns the weights that minimise :math:`\|XW + b - Y\|_F^2 + \lambda \|W\|_F^2`, at the penalty whose leave-one-out
    error is least.

    All outputs share the penalty. Solved in float64.

    Arguments:
        x: Inputs.
        y: Outputs.
        penalties: Candidates for λ, as multiples of the mean of the diagonal of `XᵀX` (of the centred inputs, with an
            intercept); `inf` means zero weights. Of equal errors the first wins.
        intercept: Fit b too, unpenalised: the same as centring inputs and outputs.

    Returns:
        The fit, in the dtype of `x`.

    Raises:
        CalibrationError: If there are fewer than two rows, or values are not finite.
        ConfigError: If a penalty is not positive, or there is none.

    References:
        | Ridge Regression: Biased Estimation for Nonorthogonal Problems (Hoerl and Kennard, 1970)
        | The Relationship between Variable Selection and Data Augmentation and a Method for Prediction (Allen, 1974), on PRESS

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> ridge(x, 2 * x, penalties=[1e-9]).weight
        tensor([[2.]])
    """
    _check(x, y, penalties)
    rows, inputs = x.shape
    wide, tall = x.double(), y.double()
    x_mean = wide.mean(0) if intercept else wide.new_zeros(inputs)
    y_mean = tall.mean(0) if intercept else tall.new_zeros(tall.shape[1])
    wide, tall = wide - x_mean, tall - y_mean
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    uy, power = u.T @ tall, s.square()
    scale = float(power.sum()) / inputs
    errors = [
        _leave_one_out(u, uy, tall, _shrinkage(power, p * scale), 1 / rows if intercept else 0.0) for p in penalties
    ]
    best = min(range(len(errors)), key=errors.__getitem__)
    weight = vh.T @ (
        (_shrinkage(power, penalties[best] * scale) / s.clamp(min=torch.finfo(s.dtype).tiny))[:, None] * uy
    )
    nothing = _leave_one_out(u, uy, tall, torch.zeros_like(s), 1 / rows if intercept else 0.0)
    bias = y_mean - x_mean @ weight
    return Ridge(weight.to(x), bias.to(x), float(penalties[best]), errors[best], nothing)


def _shrinkage(power: Float[Tensor, " values"], penalty: float) -> Float[Tensor, " values"]:
    """The part of each direction that the fit keeps, `s² / (s² + λ)`; none of a direction that has no rows."""
    if math.isinf(penalty):
        return torch.zeros_like(power)
    return power / (power + penalty).clamp(min=torch.finfo(power.dtype).tiny)


def _leave_one_out(u: Tensor, uy: Tensor, y: Tensor, kept: Tensor, mean_leverage: float) -> float:
    """Mean squared leave-one-out residual per entry; `mean_leverage` is what the intercept takes of every row, 1/n."""
    residual = y - (u * kept) @ uy
    left = 1 - mean_leverage - (u.square() @ kept)
    return float((residual / left[:, None]).square().mean())


def _check(x: Tensor, y: Tensor, penalties: Sequence[float]) -> None:
    if len(x) < 2:
        raise CalibrationError(f"A ridge regression needs at least two samples, got {len(x)}: raise --samples.")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise CalibrationError("A ridge regression got values that are not finite: a model or its inputs are broken.")
    if not penalties or any(math.isnan(p) or p <= 0 for p in penalties):
        raise ConfigError(f"Ridge penalties must be positive (inf: no fit), got {list(penalties)}.")
