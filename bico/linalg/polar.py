r"""Singular triples above a cut, faster than by SVD: from eigenvectors of Gram matrices, and in fewer dimensions where
the rank is low.

The matrix :math:`UV^\top` of these triples is the partial isometry that agrees best with the given matrix. Everything
here is float64 and takes matrices that are no wider than tall.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from bico.linalg import tridiagonal
from bico.linalg.matmul import product

GRADE = 2e-5
"""How far down a Gram matrix is trusted, as a share of its largest singular value: rounding leaves a relative error of
eps / GRADE^2 = 6e-7 there. Higher up (1e-4) maps are more exact than anyone asks, and take a fifth longer."""
SKETCH_FROM = 384
"""Matrices with a smaller side are not worth a search for low rank."""
SKETCH_SHARE = 16
"""Low rank is less than a sixteenth of the smaller side: with more, the few eigenvectors of one Gram matrix take little
longer, and the search for it is in vain more often."""
BLOCK = 24
"""Width of the iteration for values that stand out: a third of the time of one product, whatever comes of it."""
ROUNDS = 12
SETTLED = 3
"""After so many rounds the estimates tell whether there are too many."""
COUPLING = 1e-8
"""What triples that are taken off beforehand may share with the others, as a relative change of those."""
PARTIAL_FROM = 256
"""From here on it is worth while to compute some eigenvectors only."""
OVERSAMPLING = 16
RESIDUAL = 1e-8
"""How exactly triples found in a sketch must fit the whole matrix, as a share of their singular value."""


@dataclass(frozen=True)
class Triples:
    """The part of a singular value decomposition that lies above a cut."""

    left: Float[Tensor, "rows rank"]
    values: Float[Tensor, " values"]
    """Singular values, descending: first those of the vectors, then the others under the cut, which may be inexact."""
    right: Float[Tensor, "columns rank"]


def by_gram(matrix: Float[Tensor, "rows columns"], rtol: float) -> Triples:
    r"""Returns the singular triples above `rtol` times the largest value, from eigenvectors of Gram matrices.

    The eigenvectors :math:`V` of :math:`M^\top M` are right singular vectors, and the columns of :math:`MV` are left ones
    times their values. But a Gram matrix squares the values: what lies under 1e-8 of the largest drowns in rounding, and
    at a cut of 1e-6 four digits are left. So nothing under `GRADE` times the largest is taken from it. Two ways lead
    further down. Where few values stand out, as the mean of a layer's inputs and the classes of its gradients do, their
    triples are found by iteration and taken off beforehand: what remains is small enough to reach the cut in one go, and
    only eigenvectors above the cut are computed. Else the triples above `GRADE` come first; the others span
    :math:`M V_{rest}`, which is small as a whole; freed of the left vectors found so far, its own Gram matrix has the
    digits that the first one lost. A cut at 1e-6 is reached on the second level.

    Left vectors are orthonormal to about 1e-6 at worst, values above the cut as exact; those below are good to about 1e-7
    of the largest.
    """
    if rtol < GRADE and (top := outstanding(matrix, rtol / GRADE)) and (found := _below(matrix, top, rtol)):
        return found
    estimates, vectors = _eigh_of_gram(matrix)
    cut = rtol * estimates[0]
    rest, basis = matrix, None
    left, values, right = [], [], []
    while True:
        floor = max(cut, GRADE * estimates[0])
        count = int((estimates > floor).sum())
        images = product(rest, vectors if floor > cut else vectors[:, :count])
        vectors = vectors[:, : images.shape[1]] if basis is None else product(basis, vectors[:, : images.shape[1]])
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
        rest = rest - product(left[-1], product(left[-1].T, rest))
        estimates, vectors = _eigh_of_gram(rest)
    return Triples(torch.cat(left, 1), torch.cat(values), torch.cat(right, 1))


def outstanding(matrix: Float[Tensor, "rows columns"], share: float) -> Triples | None:
    r"""Returns the singular triples above `share` times the largest value if they are few and far from the rest; else None.

    Subspace iteration on :math:`M^\top M`. From :math:`MV = U\Sigma`, which holds by construction, and
    :math:`M^\top U = V\Sigma + E`, what these triples share with the others is :math:`E`: taking them off changes the
    other values, relatively, and the angles between the two groups by at most :math:`\|\Sigma^{-1}E\|`, which is under
    `COUPLING`.
    """
    columns = matrix.shape[1]
    if columns < 4 * BLOCK:
        return None
    generator = torch.Generator().manual_seed(0)  # of its own, as in `by_sketch`
    start = torch.randn(columns, BLOCK, dtype=matrix.dtype, generator=generator).to(matrix.device)
    span = torch.linalg.qr(start).Q
    for done in range(ROUNDS):
        images = product(matrix, span)
        left, values, turn = torch.linalg.svd(images, full_matrices=False)
        count = int((values > share * values[0]).sum())
        if count > BLOCK // 2:  # those that the block has not found yet might stand out as well
            if done >= SETTLED:
                return None
            span = torch.linalg.qr(product(matrix.T, images)).Q
            continue
        right, left = span @ turn[:count].T, left[:, :count]
        back = product(matrix.T, images)
        missed = (back @ turn[:count].T) / values[:count] - right * values[:count]
        if torch.linalg.matrix_norm(missed / values[:count]) < COUPLING:
            return Triples(left, values[:count], right)
        span = torch.linalg.qr(back).Q
    return None


def _below(matrix: Tensor, top: Triples, rtol: float) -> Triples | None:
    """Returns the triples above a cut, given those that stand out: the others from one Gram matrix of what is left.

    None if what is left is not small: the iteration has then missed a value, which chance can do to it.
    """
    rest = product(top.left, top.left.T @ matrix).neg_().add_(matrix)
    rest -= product(rest @ top.right, top.right.T)
    cut = float(rtol * top.values[0])
    estimates, vectors = _eigh_of_gram(rest, above=cut)
    if GRADE * estimates[0] > 1.1 * cut:
        return None
    images = product(rest, vectors)
    norms = torch.linalg.vector_norm(images, dim=0)
    others = estimates[vectors.shape[1] : len(estimates) - len(top.values)]  # what was taken off is zero in the rest
    return Triples(
        torch.cat([top.left, images.div_(norms)], 1),
        torch.cat([top.values, norms, others]),
        torch.cat([top.right, vectors], 1),
    )


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
    sketch = product(matrix, probes)
    seen = torch.linalg.eigvalsh(sketch.T @ sketch).flip(0).clamp(min=0).sqrt()
    wanted = int((seen > rtol / 10 * seen[0]).sum()) + OVERSAMPLING
    if wanted > size:
        return None
    span = sketch[:, :wanted]
    for _ in range(2):  # each power weakens what lies under the cut, against what lies above it, by the ratio squared
        span = product(matrix, torch.linalg.qr(product(matrix.T, torch.linalg.qr(span).Q)).Q)
    span = torch.linalg.qr(span).Q
    inner = product(span.T, matrix)
    found = by_gram(inner.T, rtol)
    remainder = matrix - product(span, inner)
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


def _eigh_of_gram(
    matrix: Tensor, above: float | None = None
) -> tuple[Float[Tensor, " columns"], Float[Tensor, "columns count"]]:
    """Singular values, descending, and right singular vectors of a matrix by way of its Gram matrix.

    Arguments:
        above: Give vectors of the singular values above this only; all by default.
    """
    if matrix.device.type == "cpu":
        # OpenBLAS' eigensolver needs half the time of the one in PyTorch's MKL on the machine this was measured on
        # (benchmarks/solver.py).
        gram = product(matrix.T, matrix).numpy()
        if len(gram) < PARTIAL_FROM:
            eigenvalues, vectors = scipy.linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        else:
            eigenvalues, vectors = tridiagonal.eigh_above(gram, -np.inf if above is None else above**2)
        eigenvalues, vectors = torch.from_numpy(eigenvalues), torch.from_numpy(vectors)
    else:
        eigenvalues, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values, vectors = eigenvalues.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    return values, vectors if above is None else vectors[:, : int((values > above).sum())]
