"""Centred second moments of matched rows, streamed, and the linear CKA that they determine."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import CalibrationError


@dataclass(frozen=True)
class Moments:
    r"""Count, means and centred products of rows :math:`a_i, b_i` that belong together.

    Products are :math:`\sum_i (a_i - \bar a)(b_i - \bar b)^\top`. Two streams add up exactly: a mean is never subtracted
    from a large uncentred sum, which in float32 would cancel most digits of a residual stream with a large mean.
    """

    count: int
    mean_a: Float[Tensor, " a"]
    mean_b: Float[Tensor, " b"]
    aa: Float[Tensor, "a a"]
    bb: Float[Tensor, "b b"]
    ab: Float[Tensor, "a b"]

    @classmethod
    def of(cls, rows_a: Float[Tensor, "rows a"], rows_b: Float[Tensor, "rows b"]) -> "Moments":
        """Returns the moments of one batch of rows."""
        mean_a, mean_b = rows_a.mean(0), rows_b.mean(0)
        a, b = rows_a - mean_a, rows_b - mean_b
        return cls(len(rows_a), mean_a, mean_b, a.T @ a, b.T @ b, a.T @ b)

    def __add__(self, other: "Moments") -> "Moments":
        """Returns the moments of both sets of rows together (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        step_a, step_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        share, weight = other.count / count, self.count * other.count / count
        return Moments(
            count,
            self.mean_a + share * step_a,
            self.mean_b + share * step_b,
            (self.aa + other.aa).addr_(step_a, step_a, alpha=weight),
            (self.bb + other.bb).addr_(step_b, step_b, alpha=weight),
            (self.ab + other.ab).addr_(step_a, step_b, alpha=weight),
        )

    def mapped(self, matrix: Float[Tensor, "a c"]) -> "Moments":
        """Returns the moments of the rows `a @ matrix` with the same rows `b`."""
        q = matrix.to(self.aa)
        return Moments(self.count, self.mean_a @ q, self.mean_b, q.T @ self.aa @ q, self.bb, q.T @ self.ab)


def linear_cka(moments: Moments) -> float:
    r"""Returns the linear centred kernel alignment of two sets of matched rows, in 0..1.

    .. math:: \frac{\|A^\top B\|_F^2}{\|A^\top A\|_F \, \|B^\top B\|_F}

    with centred columns. It does not change when either side is rotated, shifted or scaled as a whole.

    Raises:
        CalibrationError: If one side does not vary, or is not finite.

    References:
        | Similarity of Neural Network Representations Revisited (Kornblith et al., 2019), eq. 3 and section 3
        | https://arxiv.org/abs/1905.00414
    """
    below = torch.linalg.matrix_norm(moments.aa.double()) * torch.linalg.matrix_norm(moments.bb.double())
    if not (below.isfinite() and below > 0):
        raise CalibrationError(
            f"CKA of {moments.count} rows ({len(moments.mean_a)} and {len(moments.mean_b)} wide) is not defined: one side "
            "does not vary or is not finite. Give more than one sample, and check both models' weights."
        )
    return float(torch.linalg.matrix_norm(moments.ab.double()).square() / below)
