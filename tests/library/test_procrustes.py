import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from bico.errors import CalibrationError
from bico.linalg.procrustes import Completion, MapRule, procrustes

widths = st.integers(2, 12)
seeds = st.integers(0, 10_000)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(randn(n, n)).Q


def low_rank(rows: int, a: int, b: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return randn(rows, a).T @ randn(rows, b)


@given(widths, widths, st.integers(1, 20), seeds)
def test_partial_agrees_with_the_svd_on_the_determined_directions(a: int, b: int, rows: int, seed: int) -> None:
    cross = low_rank(rows, a, b, seed)
    partial, plain = procrustes(cross), procrustes(cross, MapRule(Completion.SVD))
    u, s, vh = torch.linalg.svd(cross, full_matrices=False)
    r = int((s > 1e-6 * s[0]).sum())
    assert partial.rank == plain.rank == r
    assert_close(partial.matrix, u[:, :r] @ vh[:r], atol=1e-7, rtol=0)
    assert_close(plain.matrix, u @ vh)
    assert_close(partial.spectrum, s, atol=1e-7 * float(s[0]), rtol=0)
    # both agree where the data determined the map, whatever they do elsewhere
    assert_close(u[:, :r].T @ plain.matrix @ vh[:r].T, u[:, :r].T @ partial.matrix @ vh[:r].T, atol=1e-7, rtol=0)


@given(widths, widths, st.integers(1, 20), seeds)
def test_partial_is_a_partial_isometry_and_attains_the_nuclear_norm(a: int, b: int, rows: int, seed: int) -> None:
    cross = low_rank(rows, a, b, seed)
    solved = procrustes(cross)
    values = torch.linalg.svdvals(solved.matrix)
    assert_close(
        values, torch.cat([torch.ones(solved.rank), torch.zeros(len(values) - solved.rank)]).double(), atol=1e-6, rtol=0
    )
    nuclear = torch.linalg.svdvals(cross).sum()
    assert_close((solved.matrix * cross).sum(), nuclear, rtol=1e-5, atol=0)


def test_full_rank_matches_scipy() -> None:
    a, b = randn(50, 7), randn(50, 7)
    expected, _ = scipy.linalg.orthogonal_procrustes(a.numpy(), b.numpy())
    for completion in Completion:
        assert_close(procrustes(a.T @ b, MapRule(completion)).matrix, torch.from_numpy(expected))


@pytest.mark.parametrize("completion", Completion)
def test_a_planted_rotation_is_found(completion: Completion) -> None:
    x, q = randn(40, 9), rotation(9)
    assert_close(procrustes(x.T @ (x @ q), MapRule(completion)).matrix, q)


def test_a_shear_is_not_taken_for_a_rotation() -> None:
    x, shear = randn(64, 5), torch.ones(5, 5, dtype=torch.float64).triu()
    assert (x @ procrustes(x.T @ x @ shear).matrix - x @ shear).norm() > 0.1 * x.norm()


@given(widths, widths, seeds)
def test_the_map_turns_with_either_basis(a: int, b: int, seed: int) -> None:
    cross = low_rank(30, a, b, seed)
    q, p = rotation(a), rotation(b)
    assert_close(procrustes(q.T @ cross @ p).matrix, q.T @ procrustes(cross).matrix @ p, atol=1e-6, rtol=0)


def test_scale_does_not_matter_and_dtype_is_kept() -> None:
    cross = randn(4, 6)
    assert_close(procrustes(1e-9 * cross).matrix, procrustes(cross).matrix)
    assert procrustes(cross.float()).matrix.dtype == torch.float32


def test_without_data_a_direction_is_left_out_by_name() -> None:
    x = randn(3, 8)  # three rows can fix three directions of eight
    partial = procrustes(x.T @ x)
    assert partial.rank == 3
    assert_close(partial.matrix, torch.linalg.pinv(x) @ x)  # the projector on the rows' span
    assert not torch.allclose(procrustes(x.T @ x, MapRule(Completion.SVD)).matrix, partial.matrix)


@pytest.mark.parametrize("bad", [torch.zeros(3, 3), torch.full((3, 3), torch.nan), torch.full((3, 3), torch.inf)])
def test_nothing_to_align_is_refused(bad: Tensor) -> None:
    with pytest.raises(CalibrationError, match=r"\(3, 3\) is zero or not finite"):
        procrustes(bad)
