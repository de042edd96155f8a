"""The iteration against the SVD, on CPUs: it is made for GPUs, where it is the default."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from bico.linalg import newton_schulz, procrustes
from bico.linalg.procrustes import Completion, Solver, by_svd
from tests.library.test_polar import powers, seeds, sides, with_values

CUT = procrustes.RANK_TOLERANCE


@pytest.fixture(autouse=True)
def _small_sizes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procrustes, "FAST_FROM", 1)


@pytest.fixture
def svds(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What has been left to the SVD from now on."""
    left: list[Tensor] = []
    monkeypatch.setattr(procrustes, "by_svd", lambda cross, *args: left.append(cross) or by_svd(cross, *args))
    return left


def assert_agrees(cross: Tensor) -> None:
    found, slow = newton_schulz.by_iteration(cross, CUT), by_svd(cross, Completion.PARTIAL, CUT)
    assert found is not None
    assert found.rank == slow.rank
    assert_close(found.matrix, slow.matrix, atol=1e-6, rtol=0)
    assert_close(found.values[: slow.rank], slow.spectrum[: slow.rank], rtol=1e-6, atol=0)
    assert (found.values[slow.rank :] <= CUT * slow.spectrum[0]).all() and (found.values.diff() <= 0).all()
    assert_close(found.values.norm(), slow.spectrum.norm())


@given(sides, sides, powers, seeds)
def test_agrees_with_the_svd_whatever_the_spectrum(rows: int, columns: int, powers: list[float], seed: int) -> None:
    assert_agrees(with_values(max(rows, columns), min(rows, columns), [10.0**p for p in powers], seed))


@given(sides, st.integers(1, 12), st.sampled_from([1e-7, 1e-8, 1e-15, 0.0]), seeds)
def test_agrees_with_the_svd_at_low_rank_in_noise(columns: int, rank: int, noise: float, seed: int) -> None:
    values = [10.0 ** (-5.5 * i / rank) for i in range(rank)] + [noise] * 40
    assert_agrees(with_values(40, columns, values, seed))


@pytest.mark.parametrize(("rows", "columns"), [(200, 200), (300, 150)])
@pytest.mark.parametrize("decay", [0, 5, 7, 12])
def test_agrees_with_the_svd_at_larger_sizes(rows: int, columns: int, decay: int) -> None:
    cross = with_values(rows, columns, torch.logspace(0, -decay, columns).tolist(), seed=0)
    assert_agrees(cross)
    assert_agrees(cross.float().double())


@pytest.mark.parametrize("distance", [3e-4, -3e-4])
def test_a_value_close_to_the_cut_is_decided_as_by_the_svd(distance: float) -> None:
    assert_agrees(with_values(40, 30, [1.0] * 10 + [CUT * (1 + distance)] * 5 + [CUT / 2] * 15, seed=0))


def test_a_value_too_close_to_the_cut_is_left_to_the_svd(svds: list[Tensor]) -> None:
    for distance in (1e-8, 2e-5, -2e-5):
        cross = with_values(30, 40, [1.0] * 10 + [CUT * (1 + distance)] * 20, seed=0)
        solved = procrustes.procrustes(cross, solver=Solver.ITERATION)
        assert_close(solved.matrix, by_svd(cross, Completion.PARTIAL, CUT).matrix, atol=1e-6, rtol=0)
    assert len(svds) == 3
    procrustes.procrustes(with_values(30, 40, [1.0] * 10 + [CUT / 2] * 20, seed=0), solver=Solver.ITERATION)
    assert len(svds) == 3


def test_wide_matrices_scales_and_dtypes(svds: list[Tensor]) -> None:
    cross = with_values(30, 40, [10.0 ** (-i / 5) for i in range(30)], seed=0).float()
    expected = procrustes.procrustes(cross, solver=Solver.GRAM)
    for scale in (1.0, 2.0**-100, 2.0**100):
        solved = procrustes.procrustes(scale * cross, solver=Solver.ITERATION)
        assert solved.matrix.dtype == torch.float32
        assert solved.rank == expected.rank
        assert_close(solved.matrix, expected.matrix, atol=1e-6, rtol=0)
        assert float(solved.spectrum[0] / scale) == pytest.approx(float(expected.spectrum[0]))
    assert not svds


@given(sides, seeds)
def test_the_largest_singular_value_is_bracketed(columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    matrix = torch.randn(50, columns, dtype=torch.float64)
    estimate, doubt = newton_schulz.largest_singular_value(matrix)
    exact = float(torch.linalg.svdvals(matrix)[0])
    assert estimate <= exact * (1 + 1e-12)
    assert exact <= estimate * (1 + doubt + 1e-12)


def test_a_long_top_of_the_spectrum_is_bracketed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too few steps to find the largest value exactly."""
    monkeypatch.setattr(newton_schulz, "KRYLOV", 12)
    matrix = with_values(200, 200, torch.linspace(1, 0.5, 200).tolist(), seed=0)
    estimate, doubt = newton_schulz.largest_singular_value(matrix)
    assert 1e-3 < doubt < 0.1
    assert estimate < 1 < estimate * (1 + doubt)
    assert_agrees(matrix)


def test_a_largest_value_in_doubt_is_left_to_the_svd(monkeypatch: pytest.MonkeyPatch, svds: list[Tensor]) -> None:
    monkeypatch.setattr(newton_schulz, "KRYLOV", 2)
    procrustes.procrustes(with_values(40, 40, torch.linspace(1, 0.5, 40).tolist(), 0), solver=Solver.ITERATION)
    assert len(svds) == 1


def test_the_smallest_value_of_interest_stays_the_smallest() -> None:
    """Steps are not monotone: near one they fold singular values down, but never below what they are told to lift."""
    low, values = 1e-6, torch.logspace(-6, 0, 120, dtype=torch.float64)
    images = torch.diag(values)
    while 1 - low > 1e-9:
        images, low = newton_schulz._step(images, low)
        assert float(images.diag().min()) == pytest.approx(low, rel=1e-9)
        assert float(images.diag().max()) <= 1 + 1e-12
        if low < 0.05:  # where ranks are decided nothing else lies as low, but the neighbours of the smallest
            assert int((images.diag() < 1.5 * low).sum()) <= int((values < 1.6e-6).sum())


def test_steps_in_float32_would_not_do() -> None:
    """Why everything is float64: the rounding of the first steps is lifted as much as what they are for."""
    cross = with_values(60, 60, torch.logspace(0, -5.5, 60).tolist(), seed=0)
    exact = by_svd(cross, Completion.PARTIAL, CUT).matrix
    x, low = cross.float(), CUT
    while 1 - low > 1e-9:
        x, low = newton_schulz._step(x, low)
    assert float((x.double() - exact).abs().max()) > 1e-4
    assert_close(x.T @ x, torch.eye(60), atol=1e-4, rtol=0)  # an isometry, but another
