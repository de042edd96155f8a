"""Eigenvectors of a symmetric matrix from a given eigenvalue upwards, at the price of just those.

LAPACK's steps one by one, as `dsyevr` would take them: for a part of the eigenvectors that driver resorts to bisection and
inverse iteration, which takes longer than all of them.
"""

import numpy as np
from scipy.linalg import LinAlgError, lapack

MOST = 0.7
"""Beyond this share divide and conquer, which finds all eigenvectors of the tridiagonal form, is faster."""
BY_INDEX = 2  # dstemr's `range`: the vectors of eigenvalues il to iu, counted from one, ascending


def eigh_above(matrix: np.ndarray, above: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns all eigenvalues, ascending, and orthonormal eigenvectors of those above a bound, as the last columns.

    Arguments:
        matrix: Symmetric, float64, (n, n); left as it is.
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
    reflectors, diagonal, beside, scales = _checked(lapack.dsytrd(matrix.T, lower=1, lwork=workspace), "dsytrd")
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
    # The tridiagonal form is Hᵀ A H, where H leaves the first coordinate alone and is a product of reflectors behind it.
    turned, _ = _checked(
        lapack.dormqr(
            "L", "N", np.asfortranarray(reflectors[1:, :-1]), scales, np.asfortranarray(vectors[1:]), 64 * size
        ),
        "dormqr",
    )
    return eigenvalues, np.concatenate([vectors[:1], turned])


def _checked(results: tuple, routine: str) -> tuple:
    *values, info = results
    if info:
        raise LinAlgError(f"{routine} failed with info={info}.")
    return tuple(values)
