"""Eigenvectors of a symmetric matrix from a given eigenvalue upwards, at the price of just those.

LAPACK's steps one by one, as `dsyevr` would take them: for a part of the eigenvectors that driver resorts to bisection and
inverse iteration, which takes longer than all of them.
"""

import numpy as np
from scipy.linalg import LinAlgError, lapack, solve_triangular

MOST = 0.35
"""Beyond this share divide and conquer, which finds all eigenvectors of the tridiagonal form, is faster."""
REFLECTORS = 192
"""So many are applied together. LAPACK's own 32 are too few for matrix products to reach their speed."""
BY_INDEX = 2  # dstemr's `range`: the vectors of eigenvalues il to iu, counted from one, ascending


def eigh_above(matrix: np.ndarray, above: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns all eigenvalues, ascending, and orthonormal eigenvectors of those above a bound, as the last columns.

    Arguments:
        matrix: Symmetric, float64, (n, n); what it held is lost.
        above: The bound.

    Returns:
        Eigenvalues (n,) and vectors (n, count), the vector of the largest last.

    References:
        | The design and implementation of the MRRR algorithm (Dhillon, Parlett and Voemel, 2006)
        | https://doi.org/10.1145/1186785.1186788
    """
    size = len(matrix)
    workspace = int(_checked(lapack.dsytrd_lwork(size, lower=1), "dsytrd_lwork")[0])
    # Symmetric, so the transpose is the same matrix in the order that LAPACK wants.
    reflectors, diagonal, beside, scales = _checked(
        lapack.dsytrd(matrix.T, lower=1, lwork=workspace, overwrite_a=1), "dsytrd"
    )
    eigenvalues = _checked(lapack.dsterf(diagonal, beside), "dsterf")[0]
    count = int((eigenvalues > above).sum())
    if not count:
        return eigenvalues, np.empty((size, 0))
    if count > MOST * size:
        _, vectors = _checked(lapack.dstevd(diagonal, beside), "dstevd")
        vectors = vectors[:, size - count :]
    else:
        _, _, vectors = _checked(
            lapack.dstemr(diagonal, np.append(beside, 0.0), BY_INDEX, 0.0, 0.0, size - count + 1, size), "dstemr"
        )
        vectors = vectors[:, :count]
    _turn_back(reflectors, scales, vectors)
    return eigenvalues, vectors


def _turn_back(reflectors: np.ndarray, scales: np.ndarray, vectors: np.ndarray) -> None:
    """Multiplies vectors, in place, by the orthogonal H of the tridiagonal form Hᵀ A H.

    H leaves the first coordinate alone and is a product of reflectors 1 - s v vᵀ behind it. A product of some of them is
    1 - V T Vᵀ, where T is upper triangular and T⁻¹ has 1/s on its diagonal and Vᵀ V above it.

    References:
        | A storage-efficient WY representation for products of Householder transformations (Schreiber and Van Loan, 1989)
        | https://doi.org/10.1137/0910005
        | On the UT transform: Joffrain et al., Accumulating Householder transformations, revisited (2006)
        | https://doi.org/10.1145/1141885.1141886
    """
    count = len(scales)
    for start in reversed(range(0, count, REFLECTORS)):
        chosen = slice(start, min(start + REFLECTORS, count))
        below = np.tril(reflectors[start + 1 :, chosen], -1)
        np.fill_diagonal(below, 1.0)
        used = scales[chosen] != 0  # a column that needed no reflector
        below, inverse = below[:, used], 1 / scales[chosen][used]
        triangle = np.triu(below.T @ below, 1) + np.diag(inverse)
        rows = vectors.T[:, start + 1 :]  # vectors come column by column
        rows -= (rows @ below) @ solve_triangular(triangle, below.T, trans="T", check_finite=False)


def _checked(results: tuple, routine: str) -> tuple:
    *values, info = results
    if info:
        raise LinAlgError(f"{routine} failed with info={info}.")
    return tuple(values)
