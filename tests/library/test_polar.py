"""The fast ways to a map against the reference, on sizes at which the reference would be taken otherwise."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from bico.linalg import polar, procrustes, tridiagonal
from bico.linalg.procrustes import Completion, by_svd

CUT = procrustes.RANK_TOLERANCE
sides = st.integers(1, 40)
seeds = st.integers(0, 10_000)
# Powers of ten of singular values: clear ones, ones on both sides of the cut at 1e-6, noise, and nothing.
powers = st.lists(st.sampled_from([0, -1, -2.5, -4, -4.6, -4.8, -5.5, -5.98, -6.02, -6.5, -8, -10, -300]), min_size=40)


@pytest.fixture(scope="module", autouse=True)
def _small_sizes_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procrustes, "FAST_FROM", 1)
        patch.setattr(polar, "SKETCH_FROM", 12)
        patch.setattr(polar, "SKETCH_SHARE", 3)
        patch.setattr(polar, "OVERSAMPLING", 2)
        patch.setattr(polar, "BLOCK", 6)
        patch.setattr(polar, "PARTIAL_FROM", 2)
        patch.setattr(tridiagonal, "REFLECTORS", 7)
        yield


def with_values(rows: int, columns: int, values: list[float], seed: int) -> Tensor:
    """A matrix with these singular values between random directions, the first of them made 1."""
    torch.manual_seed(seed)
    count = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(n, count, dtype=torch.float64)).Q for n in (rows, columns))
    return left * torch.tensor([1.0, *values[1:count]], dtype=torch.float64) @ right.T


def assert_agrees(cross: Tensor) -> None:
    fast, slow = procrustes.procrustes(cross), by_svd(cross, Completion.PARTIAL, CUT)
    assert fast.rank == slow.rank
    assert_close(fast.matrix, slow.matrix, atol=1e-5, rtol=0)
    rank, largest = slow.rank, float(slow.spectrum[0])
    assert len(fast.spectrum) == len(slow.spectrum)
    assert_close(fast.spectrum[:rank], slow.spectrum[:rank], rtol=1e-5, atol=0)
    assert (fast.spectrum[rank:] <= CUT * largest).all() and (fast.spectrum.diff() <= 1e-12 * largest).all()
    assert_close(fast.spectrum.norm(), slow.spectrum.norm())


@given(sides, sides, powers, seeds)
def test_agrees_with_the_svd_whatever_the_spectrum(rows: int, columns: int, powers: list[float], seed: int) -> None:
    assert_agrees(with_values(rows, columns, [10.0**p for p in powers], seed))


@given(st.integers(20, 40), st.integers(20, 40), st.integers(1, 12), st.sampled_from([1e-8, 1e-7, 1e-15]), seeds)
def test_agrees_with_the_svd_at_low_rank_in_noise(rows: int, columns: int, rank: int, noise: float, seed: int) -> None:
    values = [10.0 ** (-5.5 * i / rank) for i in range(rank)] + [noise] * 40
    assert_agrees(with_values(rows, columns, values, seed))


@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (400, 200), (200, 400), (64, 1000)])
@pytest.mark.parametrize("decay", [0, 5, 7, 12])
def test_agrees_with_the_svd_at_the_sizes_of_models(rows: int, columns: int, decay: int) -> None:
    cross = with_values(rows, columns, torch.logspace(0, -decay, min(rows, columns)).tolist(), seed=0)
    assert_agrees(cross)
    assert_agrees(cross.float().double())  # rounding to float32 adds noise at the height of 1e-8


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_extreme_scales_neither_overflow_nor_vanish(scale: float) -> None:
    cross = with_values(30, 20, [10.0 ** (-i / 2) for i in range(20)], seed=0).float()
    solved = procrustes.procrustes(scale * cross)
    assert_close(solved.matrix, procrustes.procrustes(cross).matrix, atol=1e-5, rtol=0)
    assert float(solved.spectrum[0]) == pytest.approx(scale)


def test_values_near_the_cut_need_the_second_level() -> None:
    cross = with_values(60, 60, torch.logspace(0, -5.9, 60).tolist(), seed=0)
    exact = torch.linalg.svdvals(cross)

    def error(values: Tensor) -> float:
        return float((values / exact - 1).abs().max())

    assert error(polar._eigh_of_gram(cross)[0]) > 1e-6
    assert error(polar.by_gram(cross, CUT).values) < 1e-8


@pytest.fixture
def solvers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the factorisations that are made from now on, `eigh` with its size."""
    made: list[str] = []
    eigh = polar._eigh_of_gram
    monkeypatch.setattr(
        polar, "_eigh_of_gram", lambda m, *a, **k: made.append(f"eigh {m.shape[1]}") or eigh(m, *a, **k)
    )
    monkeypatch.setattr(procrustes, "by_svd", lambda *args: made.append("svd") or by_svd(*args))
    return made


def test_no_svd_where_none_is_needed(solvers: list[str]) -> None:
    procrustes.procrustes(with_values(40, 30, [1.0] * 30, seed=0))
    assert solvers == ["eigh 30"]
    # twenty values within the trusted part, ten between there and the cut
    procrustes.procrustes(with_values(30, 40, [1.0] * 20 + [1e-5] * 10, seed=0))
    assert solvers[1:] == ["eigh 30", "eigh 10"]


def test_few_values_that_stand_out_spare_the_second_level(solvers: list[str]) -> None:
    procrustes.procrustes(with_values(40, 30, [1.0, 0.5] + [1e-3] * 14 + [2e-6] * 14, seed=0))
    assert solvers == ["eigh 30"]
    # two eigenvalues as large as the first are more than the block is sure about
    procrustes.procrustes(with_values(40, 30, [1.0] * 4 + [1e-3] * 14 + [2e-6] * 12, seed=0))
    assert solvers[1:] == ["eigh 30", "eigh 12"]


def test_triples_that_stand_out_are_all_of_them_or_none() -> None:
    for many in (1, 2, 3, 4, 8, 20):
        cross = with_values(60, 50, [1.0] * many + [0.01] * 50, seed=0)
        found = polar.outstanding(cross, 0.05)
        assert (found is not None) == (many <= polar.BLOCK // 2)
        if found is not None:
            left, right = found.left, found.right
            assert left.shape[1] == many
            rest = cross - left @ (left.T @ cross)
            assert_close(rest @ right, torch.zeros_like(left), atol=1e-12, rtol=0)
            assert float(torch.linalg.matrix_norm(left.T @ cross - left.T @ cross @ right @ right.T)) < 1e-8


def test_a_value_that_the_iteration_has_missed_is_not_lost(monkeypatch: pytest.MonkeyPatch, solvers: list[str]) -> None:
    cross = with_values(40, 30, [1.0, 0.5] + [1e-3] * 14 + [2e-6] * 14, seed=0)
    u, s, vh = torch.linalg.svd(cross, full_matrices=False)
    monkeypatch.setattr(polar, "outstanding", lambda *args: polar.Triples(u[:, :1], s[:1], vh[:1].T))
    assert_agrees(cross)
    assert solvers == ["eigh 30", "eigh 30", "eigh 14"]


@given(st.integers(2, 40), st.floats(-12, 2), seeds)
def test_eigenvectors_above_a_bound_are_those_of_the_whole_decomposition(n: int, bound: float, seed: int) -> None:
    torch.manual_seed(seed)
    square = torch.randn(n, n, dtype=torch.float64)
    matrix = (square @ square.T).numpy()
    values, vectors = tridiagonal.eigh_above(matrix.copy(), 10.0**bound)
    expected, whole = torch.linalg.eigh(torch.from_numpy(matrix))
    count = int((expected > 10.0**bound).sum())
    assert vectors.shape == (n, count)
    assert_close(torch.from_numpy(values), expected, atol=1e-12 * float(expected[-1]), rtol=0)
    found, kept = torch.from_numpy(vectors), whole[:, n - count :]
    assert_close(found.T @ found, torch.eye(count, dtype=torch.float64), atol=1e-10, rtol=0)
    assert_close(matrix @ vectors, vectors * values[n - count :], atol=1e-11 * float(expected[-1]), rtol=0)
    assert_close((found.T @ kept).norm() ** 2, torch.tensor(float(count), dtype=torch.float64), atol=1e-4, rtol=0)


def test_low_rank_is_solved_in_few_dimensions(solvers: list[str]) -> None:
    procrustes.procrustes(with_values(40, 30, [1.0] * 6 + [1e-9] * 30, seed=0))
    assert solvers == ["eigh 8"]


def test_a_value_too_close_to_the_cut_is_left_to_the_svd(solvers: list[str]) -> None:
    for distance in (1e-8, -1e-8):
        procrustes.procrustes(with_values(30, 30, [1.0] * 20 + [CUT * (1 + distance)] * 10, seed=0))
    assert solvers.count("svd") == 2
    procrustes.procrustes(with_values(30, 30, [1.0] * 20 + [CUT * (1 + 1e-4)] * 10, seed=0))
    assert solvers.count("svd") == 2


def test_a_sketch_whose_remainder_could_lift_a_value_over_the_cut_is_refused() -> None:
    """The value under the cut and the noise outside the sketch: their squares add up to more than the cut's, or less."""
    noise = [0.03 * CUT] * 26
    assert polar.by_sketch(with_values(40, 30, [1.0] * 3 + [0.99 * CUT] + noise, seed=0), CUT) is None
    assert polar.by_sketch(with_values(40, 30, [1.0] * 3 + [0.9 * CUT] + noise, seed=0), CUT) is not None


def test_a_sketch_whose_directions_noise_has_turned_is_refused() -> None:
    """A value just over the cut beside noise at a tenth of it, and at a thousandth."""
    values = [1.0] * 3 + [1.2 * CUT]
    assert polar.by_sketch(with_values(40, 30, values + [0.1 * CUT] * 26, seed=0), CUT) is None
    assert polar.by_sketch(with_values(40, 30, values + [1e-3 * CUT] * 26, seed=0), CUT) is not None


def test_the_second_level_is_orthogonal_to_the_first() -> None:
    """Values at the foot of the first level beside values at the cut: the worst case for what the levels share."""
    left = polar.by_gram(with_values(60, 60, [1.0] + [2.2e-5] * 20 + [1.05e-6] * 39, seed=0), CUT).left
    assert_close(left.T @ left, torch.eye(60, dtype=torch.float64), atol=1e-9, rtol=0)


def test_completion_by_the_svd_is_the_svd(solvers: list[str]) -> None:
    cross = with_values(30, 30, [1.0] * 20 + [0.0] * 10, seed=0)
    solved = procrustes.procrustes(cross, Completion.SVD)
    assert torch.equal(solved.matrix, by_svd(cross, Completion.SVD, CUT).matrix)
    assert solvers == ["svd"]


def test_the_same_matrix_gives_the_same_map_and_uses_up_no_random_numbers() -> None:
    cross = with_values(40, 30, [1.0] * 6 + [1e-9] * 30, seed=0)
    before = torch.get_rng_state()
    assert torch.equal(procrustes.procrustes(cross).matrix, procrustes.procrustes(cross).matrix)
    assert torch.equal(torch.get_rng_state(), before)
