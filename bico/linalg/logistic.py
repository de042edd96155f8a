"""Multinomial logistic regression with a squared penalty, chosen by cross-validation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bico.errors import CalibrationError

PENALTIES: tuple[float, ...] = (1.0, 0.1, 0.01, 1e-3, 1e-4)
"""Candidates from strong to weak, for inputs of unit variance and the mean loss."""
FOLDS = 4


class Fitted(NamedTuple):
    """A linear classifier: scores are `x @ weight + bias`."""

    weight: Float[Tensor, "inputs classes"]
    bias: Float[Tensor, " classes"]


def logistic(
    x: Float[Tensor, "rows inputs"],
    labels: Int[Tensor, " rows"],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> Fitted:
    r"""Returns the minimiser of the mean cross-entropy plus :math:`\frac{\lambda}{2} \|W\|^2`; the bias is free.

    Inputs are centred and scaled by one number for all. λ is the candidate with the least cross-entropy over four folds
    (row i is in fold i mod 4; with fewer rows, one fold per row). Solved in float64 by L-BFGS.

    Arguments:
        classes: How many there are; those without rows get a low score.

    Raises:
        CalibrationError: If there are fewer than two rows, or values are not finite.
    """
    _check(x)
    unit, mean, scale = _standardised(x)
    labels = labels.to(x.device)
    penalty = penalties[0]
    if len(penalties) > 1:
        penalty = penalties[int(_held_out(unit, labels, classes, penalties).sum(1).argmin())]
    weight, bias = _path(unit, labels, classes, [p for p in penalties if p >= penalty])[-1]
    return Fitted((weight / scale).to(x), (bias - mean @ weight / scale).to(x))


def held_out_losses(
    x: Float[Tensor, "rows inputs"],
    labels: Int[Tensor, " rows"],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> Float[Tensor, "penalties rows"]:
    """Returns the cross-entropy of every row, in nats, by a regression that has not seen its fold.

    Raises:
        CalibrationError: If there are fewer than two rows, or values are not finite.
    """
    _check(x)
    return _held_out(_standardised(x)[0], labels.to(x.device), classes, penalties)


def _check(x: Tensor) -> None:
    if len(x) < 2:
        raise CalibrationError(f"A logistic regression needs at least two samples, got {len(x)}: raise --samples.")
    if not x.isfinite().all():
        raise CalibrationError(
            "A logistic regression got inputs that are not finite: a model or its inputs are broken."
        )


def _standardised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs in float64, centred and scaled by one number for all; their mean and that number."""
    wide = x.double()
    mean = wide.mean(0)
    # Without columns there is nothing to scale, and only the bias to fit: the mean of nothing would be NaN.
    spread = (wide - mean).square().mean() if wide.numel() else wide.new_tensor(1.0)
    scale = spread.sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return (wide - mean) / scale, mean, scale


def _held_out(x: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]) -> Tensor:
    """(penalties, rows); row i is in fold i mod `FOLDS`."""
    fold = torch.arange(len(x), device=x.device) % min(FOLDS, len(x))
    losses = x.new_zeros(len(penalties), len(x))
    for left_out in fold.unique():
        kept, held = fold != left_out, fold == left_out
        for index, (weight, bias) in enumerate(_path(x[kept], labels[kept], classes, penalties)):
            losses[index, held] = F.cross_entropy(x[held] @ weight + bias, labels[held], reduction="none")
    return losses


def _path(x: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Solutions from strong to weak penalties, each the start of the next."""
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    found = []
    for penalty in penalties:
        solver = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

        def loss(solver: torch.optim.LBFGS = solver, penalty: float = penalty) -> Tensor:
            solver.zero_grad()
            # The faint penalty on the bias keeps it finite where a class has no rows.
            value = F.cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
            value = value + 1e-6 / 2 * bias.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            solver.step(loss)
        found.append((weight.detach().clone(), bias.detach().clone()))
    return found
