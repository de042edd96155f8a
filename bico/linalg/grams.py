r"""A cross-covariance with the Gram matrices of its two sides, for maps of partly whitened rows.

.. math:: M_p = (X_s^\top X_s)^{-p} \, X_s^\top X_t \, (X_t^\top X_t)^{-p}

At p = 0 this is the cross-covariance, in which directions count by their variance; at p = 1/2 all directions that both models
have count alike, and its singular values are canonical correlations. In between, strong directions count for more, but less so.
With fewer rows than features all canonical correlations are one, and which of them a rank keeps is chance: whitening wholly wants
more rows than layers are wide.
Gram matrices are as large as the layers are wide: they are collected only where something is to be whitened.

References:
    | Relations between two sets of variates (Hotelling, 1936)
    | https://doi.org/10.1093/biomet/28.3-4.321
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bico.linalg.matmul import add_product, product


@dataclass
class Grams:
    """What whole rows leave: their products across the models and within each; grows as rows are added."""

    cross: Float[Tensor, "source target"]
    source: Float[Tensor, "source source"]
    target: Float[Tensor, "target target"]

    @classmethod
    def of(cls, ours: Float[Tensor, "rows source"], theirs: Float[Tensor, "rows target"]) -> "Grams":
        """Of some rows."""
        return cls(product(ours.T, theirs), product(ours.T, ours), product(theirs.T, theirs))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the cross-covariance."""
        return self.cross.shape[0], self.cross.shape[1]

    def add(self, ours: Float[Tensor, "rows source"], theirs: Float[Tensor, "rows target"]) -> None:
        """Adds the products of some rows."""
        add_product(self.cross, ours, theirs)
        add_product(self.source, ours, ours)
        add_product(self.target, theirs, theirs)

    def clone(self) -> "Grams":
        return Grams(self.cross.clone(), self.source.clone(), self.target.clone())

    def to(self, device: torch.device | str) -> "Grams":
        return Grams(self.cross.to(device), self.source.to(device), self.target.to(device))

    def __add__(self, other: "Grams") -> "Grams":
        return Grams(self.cross + other.cross, self.source + other.source, self.target + other.target)

    def isfinite(self) -> Tensor:
        """Whether all of it is finite; one truth value, to be used as that of a tensor's entries."""
        return self.cross.isfinite().all() & self.source.isfinite().all() & self.target.isfinite().all()

    def whitened(self, power: float, rtol: float) -> Float[Tensor, "source target"]:
        """M_p in float64; the cross-covariance as it is for p = 0.

        Arguments:
            power: p.
            rtol: Directions of a Gram matrix with an eigenvalue below `rtol` times its largest hold nothing but rounding errors,
                which a negative power would blow up: they are left out.
        """
        if not power:
            return self.cross
        left, right = (inverse_power(gram, power, rtol) for gram in (self.source, self.target))
        return product(product(left, self.cross.double()), right)


def inverse_power(gram: Float[Tensor, "d d"], power: float, rtol: float) -> Float[Tensor, "d d"]:
    """Returns `gram ** -power` in float64 on the directions that it determines, zero on others.

    Example:
        >>> inverse_power(torch.diag(torch.tensor([4.0, 1.0, 0.0])), 0.5, 1e-6)
        tensor([[0.5000, 0.0000, 0.0000],
                [0.0000, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(gram.double())
    kept = values > rtol * values[-1]
    basis = vectors[:, kept]
    return product(basis * values[kept].pow(-power), basis.T.contiguous())
