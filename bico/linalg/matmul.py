"""Matrix products by the library that is fast on the device at hand.

On CPUs PyTorch multiplies by MKL, which leaves half of the vector units of other makers' processors idle; OpenBLAS, which
SciPy and NumPy bring and whose eigensolver is used anyway, does not (`benchmarks/products.py`).
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import blas
from torch import Tensor

_ADD = {torch.float32: blas.sgemm, torch.float64: blas.dgemm}


def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """Returns `a @ b`; of a matrix and its own transpose, in half the work."""
    if not _by_openblas(a, b):
        return a @ b
    return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


def add_product(
    total: Float[Tensor, "source target"], ours: Float[Tensor, "rows source"], theirs: Float[Tensor, "rows target"]
) -> None:
    """Adds `oursᵀ theirs` to a sum, in place and without a copy of it."""
    if not _by_openblas(total, ours, theirs) or not total.is_contiguous():
        total.addmm_(ours.T, theirs)
        return
    # Fortran's order of the transposes is C's order of the matrices: totalᵀ += theirsᵀ ours.
    views = (tensor.contiguous().numpy().T for tensor in (theirs, ours))
    _ADD[total.dtype](1.0, *views, beta=1.0, c=total.numpy().T, trans_b=True, overwrite_c=True)


def _by_openblas(*tensors: Tensor) -> bool:
    first = tensors[0].dtype
    return first in _ADD and all(t.device.type == "cpu" and t.dtype is first for t in tensors)
