r"""The partial isometry of a matrix from matrix products alone: what accelerators do fastest.

No eigenvectors: a scaled Newton–Schulz iteration drives singular values to one, and where some lie under the cut a second
one, for the sign of a matrix, makes the projector that leaves those out. Everything is float64. The first steps lift the
smallest singular values by a factor of 1e6, and their rounding with them; low precision there cannot be made good by later
steps, which drive to the nearest isometry of what they are given. (Data-centre GPUs multiply float64 at the rate of
float32.)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

STABLE = 1.697
"""Largest scale of a step: at the optimal one, which tends to the square root of 3, the largest singular value would be
mapped to nothing (Chen and Chow, 2014)."""
LIFTED = 0.02
"""Where to a singular value at the cut is lifted, at least, before ranks are decided. A step takes it 2.5 times as far, and
the largest values down to 0.1: it stays the smallest."""
BAND = 1e-4
"""No singular value may be so close to the cut, relatively: ranks would be open, and the projector inexact."""
KRYLOV = 60
"""Products of the matrix with a vector that the largest singular value is estimated from."""


@dataclass(frozen=True)
class Isometry:
    """The partial isometry of a matrix, without its singular triples."""

    matrix: Float[Tensor, "rows columns"]
    rank: int
    values: Float[Tensor, " columns"]
    """Singular values, descending; those under the cut as their root mean square."""


def by_iteration(matrix: Float[Tensor, "rows columns"], rtol: float) -> Isometry | None:
    r"""Returns :math:`UV^\top` over the singular triples above `rtol` times the largest value; None if that is in doubt.

    Each step maps singular values by :math:`p(x) = \tfrac{\alpha x}{2}(3 - \alpha^2x^2)`, with the :math:`\alpha` that lifts
    the smallest one of :math:`[l, 1]` most: first by 2.5 a step, at last :math:`l \to 1` quadratically. As :math:`p` grows on
    :math:`[0, l]`, what was under the cut stays under it. At :math:`l \approx` `LIFTED` the cut lies at a height where float64
    can tell: the eigenvalues of :math:`B = X^\top X - l^2` are negative under the cut and positive above. If a Cholesky
    factor of :math:`B` exists the rank is full; else :math:`(1 + \operatorname{sign} B)/2`, by the same iteration, is the
    projector on what is kept.

    Arguments:
        matrix: No wider than tall, float64, of a largest entry near 1.
        rtol: The cut, from about 1e-8 on.

    Returns:
        The isometry to 1e-6 or better; None if a singular value lies within `BAND` of the cut.

    References:
        | A stable scaling of Newton-Schulz for improving the sign function computation of a Hermitian matrix
          (Chen and Chow, 2014)
        | https://ftp.mcs.anl.gov/pub/tech_reports/reports/P5059.pdf
        | Functions of Matrices (Higham, 2008), chapters 5 and 8
    """
    largest, doubt = largest_singular_value(matrix)
    if doubt > 0.1:
        return None
    band = BAND + 2 * doubt
    low = rtol / (1 + 2 * doubt)
    x = matrix / (largest * (1 + 2 * doubt))
    while low < LIFTED:
        x, low = _step(x, low)
    kept = _kept(x, low, band)
    if kept is None:
        return None
    while 1 - low > 1e-9:
        x, low = _step(x, low)
    rank = round(float(kept.trace()))
    isometry = x @ kept
    return Isometry(isometry, rank, _spectrum(matrix, isometry, rank, rtol))


def _kept(x: Tensor, low: float, band: float) -> Tensor | None:
    """Projects on the right singular vectors of the values of `x` above `low`; None if one is within the band (relative)."""
    gram = x.T @ x
    eye = torch.eye(len(gram), dtype=x.dtype, device=x.device)
    gap = band * low**2  # of squares; images are nearly proportional to singular values so far down
    if _positive(gram - (low**2 + gap) * eye):
        return eye
    split = gram - low**2 * eye
    sign, least = split, gap  # eigenvalues between -low² and 1 - low²
    while 1 - least > 1e-9:
        sign, least = _step(sign, least)
        sign = (sign + sign.T) / 2
    # sign(B) B is |B|: its smallest eigenvalue is the distance of the nearest value from the cut.
    absolute = sign @ split
    if not _positive((absolute + absolute.T) / 2 - gap * eye):
        return None
    return (sign + eye) / 2


def _spectrum(matrix: Tensor, isometry: Tensor, rank: int, rtol: float) -> Tensor:
    """The other polar factor is symmetric, and its eigenvalues are the singular values."""
    factor = isometry.T @ matrix
    values = torch.linalg.eigvalsh((factor + factor.T) / 2).flip(0).clamp(min=0)
    missed = torch.linalg.matrix_norm(matrix - isometry @ factor) / max(1, len(values) - rank) ** 0.5
    values[rank:] = missed.clamp(max=rtol * values[0])
    return values


def _step(x: Tensor, low: float) -> tuple[Tensor, float]:
    """One scaled step, and where it takes the smallest value of interest."""
    alpha = min(STABLE, math.sqrt(3 / (1 + low + low**2)))
    gram = x.T @ x
    lifted = torch.addmm(x, x, gram, beta=1.5 * alpha, alpha=-0.5 * alpha**3)
    return lifted, alpha * low * (3 - (alpha * low) ** 2) / 2


def _positive(matrix: Tensor) -> bool:
    return int(torch.linalg.cholesky_ex(matrix).info) == 0


def largest_singular_value(matrix: Float[Tensor, "rows columns"]) -> tuple[float, float]:
    """Estimates the largest singular value, from below, and by how much (relatively) it may be larger.

    Lanczos on the Gram matrix, each vector made orthogonal to all before. The doubt is the size of the residual: with a
    random start the leading direction is not missed.
    """
    columns = matrix.shape[1]
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(columns, dtype=matrix.dtype, generator=generator).to(matrix.device)
    basis = [vector / vector.norm()]
    images: list[Tensor] = []
    for _ in range(min(KRYLOV, columns)):
        images.append(matrix.T @ (matrix @ basis[-1]))
        known = torch.stack(basis, 1)
        rest = images[-1]
        for _ in range(2):
            rest = rest - known @ (known.T @ rest)
        if rest.norm() <= 1e-14 * images[0].norm():
            break
        basis.append(rest / rest.norm())
    known = torch.stack(basis[: len(images)], 1)
    moved = torch.stack(images, 1)
    values, turns = torch.linalg.eigh(known.T @ moved)
    top = float(values[-1])
    residual = float((moved @ turns[:, -1] - top * (known @ turns[:, -1])).norm())
    return math.sqrt(top), residual / top
