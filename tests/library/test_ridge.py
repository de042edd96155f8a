"""Ridge regression against its definition: every row really left out, and the normal equations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from bico.errors import CalibrationError, ConfigError
from bico.linalg.ridge import PENALTIES, ridge


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def literal(x: Tensor, y: Tensor, absolute: float, intercept: bool) -> tuple[Tensor, Tensor]:
    """Weights and bias by the normal equations; the bias is a column of ones without penalty."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    design = torch.cat([x, ones], 1) if intercept else x
    penalty = absolute * torch.eye(design.shape[1], dtype=x.dtype)
    if intercept:
        penalty[-1, -1] = 0
    solution = torch.linalg.solve(design.T @ design + penalty, design.T @ y)
    return (solution[:-1], solution[-1]) if intercept else (solution, torch.zeros(y.shape[1], dtype=x.dtype))


def absolute(x: Tensor, penalty: float, intercept: bool) -> float:
    centred = x - x.mean(0) if intercept else x
    return penalty * float((centred.T @ centred).diagonal().mean())


@given(st.integers(2, 14), st.integers(1, 9), st.integers(1, 3), st.sampled_from([1e-4, 0.1, 10.0]), st.booleans())
def test_error_is_that_of_rows_really_left_out(
    rows: int, inputs: int, outputs: int, penalty: float, intercept: bool
) -> None:
    x, y = randn(rows, inputs, seed=1) + 0.5, randn(rows, outputs, seed=2) + 2
    fit, lam = ridge(x, y, [penalty], intercept), absolute(x, penalty, intercept)
    residuals = []
    for row in range(rows):
        others = [r for r in range(rows) if r != row]
        weight, bias = literal(x[others], y[others], lam, intercept)
        residuals.append(x[row] @ weight + bias - y[row])
    assert fit.error == pytest.approx(float(torch.stack(residuals).square().mean()), rel=1e-6)
    weight, bias = literal(x, y, lam, intercept)
    assert_close(fit.weight, weight, atol=1e-8, rtol=1e-6)
    assert_close(fit.bias, bias, atol=1e-8, rtol=1e-6)


def test_the_penalty_with_the_least_error_is_taken() -> None:
    x = randn(30, 20, seed=1)
    y = x[:, :2] @ randn(2, 4, seed=2) + randn(30, 4, seed=3)
    single = {p: ridge(x, y, [p]).error for p in PENALTIES}
    fit = ridge(x, y)
    assert fit.error == min(single.values()) and fit.penalty == min(single, key=single.__getitem__)
    assert 1e-3 < fit.penalty < 1e3 and 0 < fit.explained < 1  # a choice between the ends


def test_a_linear_map_without_noise_is_found_and_noise_is_left_alone() -> None:
    x, true = randn(40, 6, seed=1), randn(6, 3, seed=2)
    assert_close(ridge(x, x @ true).weight, true, atol=1e-4, rtol=1e-4)
    assert ridge(x, x @ true).explained > 0.999
    noise = ridge(randn(8, 6, seed=3), randn(8, 50, seed=4))  # nothing to learn: the penalty goes up
    assert noise.penalty >= 1 and noise.explained < 0.2


@pytest.mark.parametrize("intercept", [False, True])
def test_an_infinite_penalty_gives_zero_weights(intercept: bool) -> None:
    x, y = randn(9, 4, seed=1), randn(9, 2, seed=2)
    fit = ridge(x, y, [math.inf], intercept)
    assert torch.equal(fit.weight, torch.zeros_like(fit.weight)) and fit.explained == 0
    assert_close(fit.bias, y.mean(0) if intercept else torch.zeros(2, dtype=torch.float64))


def test_scale_and_repetition_of_rows_do_not_move_the_penalty() -> None:
    x, y = randn(20, 5, seed=1), randn(20, 2, seed=2)
    one = ridge(x, y, [0.3])
    assert_close(ridge(100 * x, y, [0.3]).weight * 100, one.weight)
    assert_close(ridge(x.repeat(3, 1), y.repeat(3, 1), [0.3]).weight, one.weight)


def test_directions_without_rows_get_no_weight() -> None:
    x = torch.cat([randn(12, 3, seed=1), torch.zeros(12, 2, dtype=torch.float64)], 1)
    fit = ridge(x, randn(12, 2, seed=2), [1e-6])
    assert fit.weight.isfinite().all() and not fit.weight[3:].any() and fit.weight[:3].all()
    assert not ridge(torch.zeros(4, 3), torch.ones(4, 2)).weight.any()


def test_float32_is_solved_in_float64() -> None:
    x, y = randn(30, 10, seed=1), randn(30, 2, seed=2)
    assert ridge(x.float(), y.float(), [1e-6]).weight.dtype is torch.float32
    assert_close(ridge(x.float(), y.float(), [1e-6]).weight.double(), ridge(x, y, [1e-6]).weight, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = randn(5, 2), randn(5, 1)
    with pytest.raises(CalibrationError, match="at least two samples, got 1"):
        ridge(x[:1], y[:1])
    with pytest.raises(CalibrationError, match="not finite"):
        ridge(x * torch.inf, y)
    with pytest.raises(ConfigError, match="must be positive"):
        ridge(x, y, [0.0])
