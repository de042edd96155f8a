r"""Sums of products of rows, :math:`\sum X_s^\top X_t`, of which only the strongest directions are kept.

A cross-covariance of two wide layers is as large as a weight, and a map of it is worth a few hundred directions. A sketch
multiplies it from both sides with fixed random matrices while the rows come in,

.. math:: Y = C \Omega, \qquad W = C^\top \Psi

so that neither :math:`C` nor the rows are ever held. It is linear in :math:`C`: sketches of the same shape add up as
covariances do, over batches, sample counts, and labelled and unlabelled samples.

References:
    | Practical sketching algorithms for low-rank matrix approximation (Tropp, Yurtsever, Udell, Cevher, 2017)
    | https://arxiv.org/abs/1609.00048
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import CalibrationError
from bico.linalg.grams import Grams
from bico.linalg.matmul import add_product, product

RANGE, CORANGE = 2, 4
"""Columns of Y and W, as multiples of the directions wanted. The solution is a least-squares problem with W's columns for
equations and Y's for unknowns; twice as many keep it well conditioned."""
WORTH = 0.5
"""A sketch is used where it takes at most this share of the covariance's memory. Its products, which are made in two steps,
then take no longer."""


@dataclass
class Sketch:
    """A sketch of a cross-covariance (source features x target features); grows as rows are added."""

    range: Float[Tensor, "source columns"]
    """Y."""
    corange: Float[Tensor, "target more_columns"]
    """W."""

    @classmethod
    def of(cls, source: int, target: int, rank: int, device: torch.device | str = "cpu") -> "Sketch":
        """An empty sketch that will give the `rank` strongest directions."""
        widths = (RANGE * rank, CORANGE * rank)
        return cls(*(torch.zeros(d, width, device=device) for d, width in zip((source, target), widths, strict=True)))

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is sketched."""
        return len(self.range), len(self.corange)

    def add(self, source: Float[Tensor, "rows source"], target: Float[Tensor, "rows target"]) -> None:
        """Adds the product of some rows."""
        add_product(
            self.range, source, product(target, random_matrix(target.shape[1], self.range.shape[1], target.device))
        )
        add_product(
            self.corange, target, product(source, random_matrix(source.shape[1], self.corange.shape[1], source.device))
        )

    def clone(self) -> "Sketch":
        return Sketch(self.range.clone(), self.corange.clone())

    def to(self, device: torch.device | str) -> "Sketch":
        return Sketch(self.range.to(device), self.corange.to(device))

    def __add__(self, other: "Sketch") -> "Sketch":
        return Sketch(self.range + other.range, self.corange + other.corange)

    def isfinite(self) -> Tensor:
        """Whether all of it is finite; one truth value, to be used as that of a tensor's entries."""
        return self.range.isfinite().all() & self.corange.isfinite().all()

    def factors(self) -> tuple[Float[Tensor, "source k"], Float[Tensor, " k"], Float[Tensor, "target k"]]:
        """Left singular vectors, singular values (descending) and right singular vectors of what is sketched, float64: exact
        up to rounding if its rank is at most the number of columns of Y.
        """
        outer, inner = self.range.double(), self.corange.double()
        left, _ = torch.linalg.qr(outer)
        seen = random_matrix(len(left), inner.shape[1], left.device).double().T @ left
        basis, triangle = torch.linalg.qr(seen)
        # Least squares: C = left @ core with seen @ core = Wᵀ.
        core = torch.linalg.solve_triangular(triangle.T, inner @ basis, upper=False, left=False)
        right, small = torch.linalg.qr(core)
        u, values, vh = torch.linalg.svd(small.T)
        return left @ u, values, right @ vh.T


Cross = Tensor | Sketch | Grams
"""A cross-covariance, a sketch of it, or one with the Gram matrices of its sides."""


def added(first: Cross, second: Cross) -> Cross:
    """Returns the sum of two covariances, of two sketches that were made for as many directions, or of two with Gram matrices.

    Raises:
        CalibrationError: If they are not of one kind.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first + second
    if isinstance(first, Sketch) and isinstance(second, Sketch):
        return first + second
    if isinstance(first, Grams) and isinstance(second, Grams):
        return first + second
    raise CalibrationError("A covariance and a sketch of one cannot be added: collect both for as many directions.")


def worth_sketching(source: int, target: int, rank: int | None) -> bool:
    """Whether a cross-covariance of these widths is better sketched, for its `rank` strongest directions.

    Example:
        >>> worth_sketching(3072, 3072, 128), worth_sketching(768, 768, 128), worth_sketching(3072, 3072, None)
        (True, False, False)
    """
    if rank is None or CORANGE * rank >= min(source, target):
        return False
    return _sketched_values(source, target, rank) <= WORTH * source * target


def kept_values(source: int, target: int, rank: int | None, grams: bool = False) -> int:
    """Returns how many numbers are kept of a cross-covariance: all, those of its sketch, or all with both Gram matrices.

    Example:
        >>> kept_values(2, 3, None), kept_values(2, 3, None, grams=True)
        (6, 19)
    """
    if grams:
        return source * target + source * source + target * target
    if rank is None or not worth_sketching(source, target, rank):
        return source * target
    return _sketched_values(source, target, rank)


def _sketched_values(source: int, target: int, rank: int) -> int:
    return source * RANGE * rank + target * CORANGE * rank


@lru_cache(maxsize=16)
def random_matrix(features: int, columns: int, device: torch.device) -> Float[Tensor, "features columns"]:
    """Returns the Gaussian matrix for one shape: always the same, so that sketches add up."""
    generator = torch.Generator().manual_seed(1_000_003 * features + columns)
    return torch.randn(features, columns, generator=generator).to(device)
