r"""Orthogonal maps between the coordinates of two models.

Rows are samples (tokens) and columns are features, so a map :math:`Q` acts from the right: `rows_source @ Q` are
the source's rows in target coordinates.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import CalibrationError
from bico.linalg import newton_schulz, polar
from bico.linalg.matmul import product


class Completion(StrEnum):
    """What a map does outside the span that the calibration rows determine."""

    PARTIAL = "partial"
    """Nothing: the map is a partial isometry, zero on undetermined directions. Deterministic."""
    SVD = "svd"
    """Whatever the SVD's null-space vectors give: the paper's plain :math:`UV^\\top`, arbitrary there."""


class Solver(StrEnum):
    """How a partial map is solved; both ways give the ranks of the SVD, and maps that agree with its to 1e-5."""

    GRAM = "gram"
    """From eigenvectors of Gram matrices (`polar.py`): on CPUs."""
    ITERATION = "iteration"
    """From matrix products alone (`newton_schulz.py`): on GPUs."""


RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as undetermined: rows are float32, whose rounding alone
leaves about 1e-7 of the largest value on directions that carry nothing."""
FAST_FROM = 192
"""Where the smaller side is less, the SVD takes milliseconds and nothing is faster."""
SMALLEST_FAST_CUT = 1e-7
"""Nearer to float64's own rounding, only the SVD decides ranks."""
UNDECIDED = 5e-6
"""A singular value that is as close to the cut as this (relative) is left to the SVD too, so that ranks are the same."""


@dataclass(frozen=True)
class AlignmentMap:
    """A map between two feature spaces, and how much of it the data determined."""

    matrix: Float[Tensor, "source target"]
    rank: int
    """Directions fixed by data, at most min(source, target)."""
    spectrum: Float[Tensor, " values"]
    """All singular values of the cross-covariance, descending, float64. Those under the cut are good to about 1e-7 of the
    largest only, and where the rank is low they may be given as their root mean square."""


def procrustes(
    cross: Float[Tensor, "source target"],
    completion: Completion = Completion.PARTIAL,
    rtol: float = RANK_TOLERANCE,
    solver: Solver | None = None,
) -> AlignmentMap:
    r"""Returns the semi-orthogonal map that best agrees with a cross-covariance.

    .. math:: Q = \arg\max_{Q} \operatorname{tr}(Q^\top X_s^\top X_t) = U V^\top

    When the source is no wider than the target, Q also minimises :math:`\|X_s Q - X_t\|_F`. With fewer independent
    rows than dimensions :math:`UV^\top` is arbitrary on the null space; `completion` says what happens there.

    Solved in float64, on the device of `cross`: partial maps by a `Solver`; maps completed by the SVD, small ones, and
    ranks too close to call by `by_svd`.

    Arguments:
        cross: The cross-covariance :math:`X_s^\top X_t`; its scale does not matter.
        completion: What the map does outside the determined directions.
        rtol: Singular values below `rtol` times the largest count as undetermined.
        solver: By default the iteration on a GPU and Gram matrices on a CPU.

    Returns:
        The map in the dtype of `cross`, with its rank and spectrum.

    Raises:
        CalibrationError: If `cross` is all zeros or not finite.

    References:
        | A generalized solution of the orthogonal Procrustes problem (Schönemann, 1966)
        | https://doi.org/10.1007/BF02289451

    Example:
        >>> procrustes(torch.tensor([[0.0, 2.0], [3.0, 0.0]])).matrix
        tensor([[0., 1.],
                [1., 0.]])
    """
    peak = cross.abs().max().double()  # NaN if any entry is
    if not peak.isfinite() or not peak:
        raise CalibrationError(
            f"Cross-covariance of shape {tuple(cross.shape)} is zero or not finite: did the rows reach it? "
            "Check the calibration samples and both models' weights."
        )
    if Completion(completion) is Completion.SVD or min(cross.shape) < FAST_FROM or not SMALLEST_FAST_CUT <= rtol < 1:
        return by_svd(cross, completion, rtol)
    if cross.shape[0] < cross.shape[1]:
        turned = procrustes(cross.T, completion, rtol, solver)
        return AlignmentMap(turned.matrix.T.contiguous(), turned.rank, turned.spectrum)
    # Only the direction matters, so the scale may be one at which squares neither overflow nor vanish.
    scaled = cross.to(torch.float64, copy=True).div_(peak)
    solver = solver or (Solver.ITERATION if cross.is_cuda else Solver.GRAM)
    solved = _by_gram(scaled, rtol, cross.dtype) if solver is Solver.GRAM else _by_iteration(scaled, rtol, cross.dtype)
    if solved is None:
        return by_svd(cross, completion, rtol)
    return replace(solved, spectrum=solved.spectrum * peak)


def _by_gram(matrix: Tensor, rtol: float, dtype: torch.dtype) -> AlignmentMap | None:
    triples = polar.by_sketch(matrix, rtol) or polar.by_gram(matrix, rtol)
    if (triples.values / (rtol * triples.values[0]) - 1).abs().min() < UNDECIDED:
        return None
    return AlignmentMap(
        product(triples.left.to(dtype), triples.right.to(dtype).T), triples.left.shape[1], triples.values
    )


def _by_iteration(matrix: Tensor, rtol: float, dtype: torch.dtype) -> AlignmentMap | None:
    found = newton_schulz.by_iteration(matrix, rtol)
    return None if found is None else AlignmentMap(found.matrix.to(dtype), found.rank, found.values)


def by_svd(cross: Float[Tensor, "source target"], completion: Completion, rtol: float) -> AlignmentMap:
    """The reference that `procrustes` agrees with: plain singular value decomposition in float64."""
    # float64: rounding errors in the map grow as 1 / (smallest determined singular value).
    u, spectrum, vh = torch.linalg.svd(cross.double(), full_matrices=False)
    rank = int((spectrum > rtol * spectrum[0]).sum())
    kept = rank if Completion(completion) is Completion.PARTIAL else len(spectrum)
    return AlignmentMap((u[:, :kept] @ vh[:kept]).to(cross.dtype), rank, spectrum)
