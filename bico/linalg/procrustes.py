r"""Orthogonal maps between the coordinates of two models, as pairs of thin factors.

Rows are samples (tokens) and columns are features, so a map :math:`Q` acts from the right: `rows_source @ Q` are
the source's rows in target coordinates.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import CalibrationError, ConfigError
from bico.linalg.grams import Grams
from bico.linalg.matmul import product
from bico.linalg.sketch import RANGE, Cross, Sketch


class Completion(StrEnum):
    """What a map does outside the span that the calibration rows determine."""

    PARTIAL = "partial"
    """Nothing: the map is a partial isometry, zero on undetermined directions. Deterministic."""
    SVD = "svd"
    """Whatever the SVD's null-space vectors give: the paper's plain :math:`UV^\\top`, arbitrary there."""


MAP_RANK = 128
"""Directions that a map keeps by default, the strongest first (`benchmarks/ranks.py`)."""
HALF = 0.5
ALL = 0
"""Of a rule's rank: all directions that the rows determine."""


@dataclass(frozen=True, order=True)
class MapRule:
    """Which directions a map keeps, and what it does outside of them."""

    completion: Completion = Completion.PARTIAL
    rank: int = ALL
    """How many directions at most."""
    whiten: float = field(default=0.0, metadata={"added_later": True})  # keys leave it out while it is the default
    """The power p in [0, 1/2] by which both sides' rows are whitened before they are aligned (`bico.linalg.grams`)."""

    def __post_init__(self) -> None:
        if not 0 <= self.whiten <= HALF:  # nor is NaN
            raise ConfigError(
                f"whiten={self.whiten:g} of a map must lie in 0..{HALF}: 0 whitens nothing, {HALF} wholly."
            )
        if self.rank < 0:
            raise ConfigError(f"rank={self.rank} of a map must be a number of directions, or {ALL} for all.")
        if self.completion == Completion.SVD and self.rank != ALL:
            raise ConfigError(
                f"completion=svd keeps all directions, so rank={self.rank} contradicts it: leave one out."
            )

    @classmethod
    def of(cls, completion: Completion, rank: int, whiten: float = 0.0) -> "MapRule":
        """The rule of these settings, of which a completion by the SVD leaves no choice of the rank."""
        return cls(completion, ALL if completion == Completion.SVD else rank, whiten)

    @property
    def most(self) -> int | None:
        """The largest number of directions; None without a limit."""
        return self.rank or None

    @property
    def collected(self) -> int | None:
        """How many of the strongest directions of the rows' products decide the map; None for all. Whitening makes weak ones
        strong, so for that none can be left out.
        """
        return None if self.whiten else self.most


RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as undetermined: rows are float32, whose rounding alone
leaves about 1e-7 of the largest value on directions that carry nothing."""
OVERSAMPLING = 1.25
"""Directions that are searched for, as a multiple of those that are kept."""
SEARCH_BELOW = 0.5
"""Where at most this share of all directions is searched for, a search is faster than the whole decomposition."""
TURNS = 2
"""Multiplications with the covariance and its transpose that a search takes: strong directions grow with each."""


@dataclass(frozen=True)
class AlignmentMap:
    r"""A map between two feature spaces, :math:`Q = P_s P_t^\\top`, and how much of it the data determined."""

    left: Float[Tensor, "source kept"]
    """Orthonormal columns."""
    right: Float[Tensor, "target kept"]
    """Orthonormal columns."""
    rank: int
    """Directions that the data fixed, of those that were asked for."""
    spectrum: Float[Tensor, " values"]
    """The singular values of the cross-covariance that were found, descending, float64; all of them, or those of the search,
    of which the strongest are good to some percent."""

    @property
    def shape(self) -> tuple[int, int]:
        """(source features, target features)."""
        return len(self.left), len(self.right)

    @property
    def matrix(self) -> Float[Tensor, "source target"]:
        """The map as one matrix: as large as a weight, and rarely needed."""
        return product(self.left, self.right.T)

    def forward(self, rows: Float[Tensor, "rows source"]) -> Float[Tensor, "rows target"]:
        """Rows of the source in the target's coordinates, `rows @ Q`; two thin products."""
        return product(product(rows, self.left), self.right.T)

    def to(self, device: torch.device | str) -> "AlignmentMap":
        return AlignmentMap(self.left.to(device), self.right.to(device), self.rank, self.spectrum)


def procrustes(cross: Cross, rule: MapRule = MapRule(), rtol: float = RANK_TOLERANCE) -> AlignmentMap:
    r"""Returns the semi-orthogonal map that best agrees with a cross-covariance.

    .. math:: Q = \arg\max_{Q} \operatorname{tr}(Q^\top X_s^\top X_t) = U V^\top

    When the source is no wider than the target, Q also minimises :math:`\|X_s Q - X_t\|_F`. With fewer independent
    rows than dimensions :math:`UV^\top` is arbitrary on the null space; the rule says what happens there, and how many of the
    strongest directions are kept.

    Solved in float64, on the device of `cross`. Where few of many directions are kept, they are searched for by subspace
    iteration from a fixed start; else all are found by a singular value decomposition.

    Arguments:
        cross: The cross-covariance :math:`X_s^\top X_t`, a sketch of it, or one with Gram matrices; its scale does not matter.
        rule: What is kept of it. A sketch gives no more directions than it was made for.
        rtol: Singular values below `rtol` times the largest count as undetermined.

    Returns:
        The map in float32, or in float64 if `cross` is; with its rank and spectrum.

    Raises:
        CalibrationError: If `cross` is all zeros or not finite, a sketch where all directions are wanted, or without Gram
            matrices where it is to be whitened.

    References:
        | A generalized solution of the orthogonal Procrustes problem (Schönemann, 1966)
        | https://doi.org/10.1007/BF02289451
        | Finding structure with randomness (Halko, Martinsson, Tropp, 2011), algorithm 4.4
        | https://arxiv.org/abs/0909.4061

    Example:
        >>> procrustes(torch.tensor([[0.0, 2.0], [3.0, 0.0]])).matrix
        tensor([[0., 1.],
                [1., 0.]])
    """
    if isinstance(cross, Grams):
        dtype, cross = cross.cross.dtype, cross.whitened(rule.whiten, rtol) if cross.isfinite() else cross.cross
    elif rule.whiten:
        raise CalibrationError(
            f"A map by whiten={rule.whiten:g} needs the Gram matrices of both sides: collect them as well."
        )
    else:
        dtype = cross.range.dtype if isinstance(cross, Sketch) else cross.dtype
    if isinstance(cross, Sketch):
        if rule.most is None or RANGE * rule.most > cross.range.shape[1]:
            raise CalibrationError(
                f"A sketch of {cross.range.shape[1]} columns cannot give a map of {rule.most or 'all'} directions: collect "
                "again with that rank."
            )
        peak = cross.range.abs().max().double()
    else:
        peak = cross.abs().max().double()  # NaN if any entry is
    if not peak.isfinite() or not peak:
        raise CalibrationError(
            f"Cross-covariance of shape {tuple(cross.shape)} is zero or not finite: did the rows reach it? "
            "Check the calibration samples and both models' weights."
        )
    if isinstance(cross, Sketch):
        u, spectrum, v = cross.factors()
    elif rule.most is not None and OVERSAMPLING * rule.most <= SEARCH_BELOW * min(cross.shape):
        u, spectrum, v = _searched(cross.double(), int(OVERSAMPLING * rule.most))
    else:
        # float64: rounding errors in the map grow as 1 / (smallest determined singular value).
        u, spectrum, vh = torch.linalg.svd(cross.double(), full_matrices=False)
        v = vh.T
    found = int((spectrum > rtol * spectrum[0]).sum())
    rank = found if rule.most is None else min(found, rule.most)
    kept = rank if rule.completion == Completion.PARTIAL else len(spectrum)
    left, right = (basis[:, :kept].to(dtype).contiguous() for basis in (u, v))
    return AlignmentMap(left, right, rank, spectrum)


def _searched(
    cross: Float[Tensor, "source target"], wanted: int
) -> tuple[Float[Tensor, "source wanted"], Float[Tensor, " wanted"], Float[Tensor, "target wanted"]]:
    """The strongest singular directions with their values, by subspace iteration."""
    start = torch.randn(
        cross.shape[1], wanted, dtype=cross.dtype, generator=torch.Generator().manual_seed(cross.shape[1])
    ).to(cross.device)
    left, _ = torch.linalg.qr(product(cross, start))
    for _ in range(TURNS - 1):
        right, _ = torch.linalg.qr(product(cross.T, left))
        left, _ = torch.linalg.qr(product(cross, right))
    right, triangle = torch.linalg.qr(product(cross.T, left))
    u, values, vh = torch.linalg.svd(triangle.T)
    return product(left, u), values, product(right, vh.T)
