r"""Orthogonal maps between the coordinates of two models.

Rows are samples (tokens) and columns are features, so a map :math:`Q` acts from the right: `rows_source @ Q` are
the source's rows in target coordinates.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import CalibrationError


class Completion(StrEnum):
    """What a map does outside the span that the calibration rows determine."""

    PARTIAL = "partial"
    """Nothing: the map is a partial isometry, zero on undetermined directions. Deterministic."""
    SVD = "svd"
    """Whatever the SVD's null-space vectors give: the paper's plain :math:`UV^\\top`, arbitrary there."""


RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as undetermined: rows are float32, whose rounding alone
leaves about 1e-7 of the largest value on directions that carry nothing."""


@dataclass(frozen=True)
class AlignmentMap:
    """A map between two feature spaces, and how much of it the data determined."""

    matrix: Float[Tensor, "source target"]
    rank: int
    """Directions fixed by data, at most min(source, target)."""
    spectrum: Float[Tensor, " values"]
    """All singular values of the cross-covariance, descending, float64."""


def procrustes(
    cross: Float[Tensor, "source target"],
    completion: Completion = Completion.PARTIAL,
    rtol: float = RANK_TOLERANCE,
) -> AlignmentMap:
    r"""Returns the semi-orthogonal map that best agrees with a cross-covariance.

    .. math:: Q = \arg\max_{Q} \operatorname{tr}(Q^\top X_s^\top X_t) = U V^\top

    When the source is no wider than the target, Q also minimises :math:`\|X_s Q - X_t\|_F`. With fewer independent
    rows than dimensions :math:`UV^\top` is arbitrary on the null space; `completion` says what happens there.

    Arguments:
        cross: The cross-covariance :math:`X_s^\top X_t`; its scale does not matter.
        completion: What the map does outside the determined directions.
        rtol: Singular values below `rtol` times the largest count as undetermined.

    Returns:
        The map in the dtype of `cross`, solved in float64, with its rank and spectrum.

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
    if not cross.isfinite().all() or not cross.any():
        raise CalibrationError(
            f"Cross-covariance of shape {tuple(cross.shape)} is zero or not finite: did the rows reach it? "
            "Check the calibration samples and both models' weights."
        )
    # float64: rounding errors in the map grow as 1 / (smallest determined singular value).
    u, spectrum, vh = torch.linalg.svd(cross.double(), full_matrices=False)
    rank = int((spectrum > rtol * spectrum[0]).sum())
    kept = rank if Completion(completion) is Completion.PARTIAL else len(spectrum)
    return AlignmentMap((u[:, :kept] @ vh[:kept]).to(cross.dtype), rank, spectrum)
