r"""Singular triples above a cut, faster than by SVD: from eigenvectors of Gram matrices, and in fewer dimensions where
the rank is low.

The matrix :math:`UV^\top` of these triples is the partial isometry that agrees best with the given matrix. Everything
here is float64 and takes matrices that are no wider than tall.
"""

from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

GRADE = 2e-5
"""How far down a Gram matrix is trusted, as a share of its largest singular value: rounding leaves a relative error of
eps / GRADE^2 = 6e-7 there. Higher up (1e-4) maps are more exact than anyone asks, and take a fifth longer."""
SKETCH_FROM = 384
"""Matrices with a smaller side are not worth a search for low rank."""
SKETCH_SHARE = 3
"""Low rank is less than a third of the smaller side. Outputs of an MLP's first layer have a fourth, by their shape."""
OVERSAMPLING = 16
RESIDUAL = 1e-8
"""How exactly triples found in a sketch must fit the whole matrix, as a share of their singular value."""


@dataclass(frozen=True)
class Triples:
    """The part of a singular value decomposition that lies above a cut."""

    left: Float[Tensor, "rows rank"]
    values: Float[Tensor, " columns"]
    """All singular values, descending; those under the cut have no vectors here and may be inexact."""
    right: Float[Tensor, "columns rank"]


def by_gram(matrix: Float[Tensor, "rows columns"], rtol: float) -> Triples:
    r"""Returns the singular triples above `rtol` times the largest value, from eigenvectors of Gram matrices.

    The eigenvectors :math:`V` of :math:`M^\top M` are right singular vectors, and the columns of :math:`MV` are left ones
    times their values. But a Gram matrix squares the values: what lies under 1e-8 of the largest drowns in rounding, and
    at a cut of 1e-6 four digits are left. So only triples above `GRADE` are taken from it. The others span
    :math:`M V_{rest}`, which is small as a whole; freed of the left vectors found so far, its own Gram matrix has the
    digits that the first one lost. A cut at 1e-6 is reached on the second level.

    Left vectors are orthonormal to about 1e-6 at worst, values above the cut as exact; those below are good to about 1e-7
    of the largest.
    """
    estimates, vectors = _eigh_of_gram(matrix)
    cut = rtol * estimates[0]
    rest, basis = matrix, None
    left, values, right = [], [], []
    while True:
        floor = max(cut, GRADE * estimates[0])
        count = int((estimates > floor).sum())
        images = rest @ vectors if floor > cut else rest @ vectors[:, :count]
        vectors = vectors[:, : images.shape[1]] if basis is None else basis @ vectors[:, : images.shape[1]]
        # Rounding leaves less in the norms of the images than in the square roots of eigenvalues.
        norms = torch.linalg.vector_norm(images[:, :count], dim=0)
        left.append(images[:, :count] / norms)
        values.append(norms)
        right.append(vectors[:, :count])
        # Under a tenth of the cut nothing can be above it: eigenvalues are off by 1e-15 of the largest, roots by 3e-8.
        if floor == cut or count == len(estimates) or estimates[count] < cut / 10:
            values.append(estimates[count:])
            break
        rest, basis = images[:, count:], vectors[:, count:]
        rest = rest - left[-1] @ (left[-1].T @ rest)
        estimates, vectors = _eigh_of_gram(rest)
    return Triples(torch.cat(left, 1), torch.cat(values), torch.cat(right, 1))


def by_sketch(matrix: Float[Tensor, "rows columns"], rtol: float) -> Triples | None:
    r"""Returns the singular triples above `rtol` times the largest value if they are few and provably all; else None.

    A randomised range finder (Halko et al., 2011, algorithm 4.4) gives an orthonormal :math:`Q` with
    :math:`M \approx QQ^\top M`, and :math:`Q^\top M` is solved by `by_gram`. Two things are then checked, so that chance
    decides about speed alone. With :math:`R = M - QQ^\top M` the squared singular values of :math:`M` exceed those of
    :math:`Q^\top M` by at most :math:`\|R\|_F^2`: no value may lie so close under the cut that this could lift it over.
    And :math:`M v = \sigma u + R v`: the last term must be `RESIDUAL` times :math:`\sigma` at most.

    Values that the sketch did not resolve are given as their root mean square.

    References:
        | Finding structure with randomness (Halko, Martinsson and Tropp, 2011)
        | https://doi.org/10.1137/090771806
    """
    columns = matrix.shape[1]
    size = columns // SKETCH_SHARE
    if columns < SKETCH_FROM:
        return None
    # A generator of its own: the same matrix gives the same map, and nobody's random numbers are used up.
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(columns, size, dtype=matrix.dtype, generator=generator).to(matrix.device)
    sketch = matrix @ probes
    seen = torch.linalg.eigvalsh(sketch.T @ sketch).flip(0).clamp(min=0).sqrt()
    wanted = int((seen > rtol / 10 * seen[0]).sum()) + OVERSAMPLING
    if wanted > size:
        return None
    span = sketch[:, :wanted]
    for _ in range(2):  # each power weakens what lies under the cut, against what lies above it, by the ratio squared
        span = matrix @ torch.linalg.qr(matrix.T @ torch.linalg.qr(span).Q).Q
    span = torch.linalg.qr(span).Q
    inner = span.T @ matrix
    found = by_gram(inner.T, rtol)
    remainder = matrix - span @ inner
    missed = float(torch.linalg.matrix_norm(remainder))
    left, values, right = span @ found.right, found.values, found.left
    rank, cut = left.shape[1], float(rtol * values[0])
    below = float(values[rank]) if rank < len(values) else 0.0
    if below**2 + missed**2 >= cut**2:
        return None
    if (torch.linalg.vector_norm(remainder @ right, dim=0) > RESIDUAL * values[:rank]).any():
        return None
    others = missed / (columns - wanted) ** 0.5
    values = torch.cat([values, values.new_full((columns - wanted,), others)]).sort(descending=True).values
    return Triples(left, values, right)


def _eigh_of_gram(matrix: Tensor) -> tuple[Float[Tensor, " columns"], Float[Tensor, "columns columns"]]:
    """Singular values, descending, and right singular vectors of a matrix by way of its Gram matrix."""
    if matrix.device.type == "cpu":
        # OpenBLAS multiplies a matrix by its own transpose in half the work, and its eigensolver needs 0.7 of the time
        # of the one in PyTorch's MKL on the machine this was measured on (benchmarks/solver.py).
        rows = matrix.numpy()
        eigenvalues, vectors = scipy.linalg.eigh(rows.T @ rows, driver="evd", overwrite_a=True, check_finite=False)
        eigenvalues, vectors = torch.from_numpy(eigenvalues), torch.from_numpy(vectors)
    else:
        eigenvalues, vectors = torch.linalg.eigh(matrix.T @ matrix)
    return eigenvalues.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
