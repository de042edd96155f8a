"""Products by another library are the products that PyTorch forms."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from bico.linalg.matmul import add_product, product


def rows(count: int, features: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("count", "source", "target"), [(7, 5, 3), (1, 4, 6), (40, 1, 1), (0, 3, 2)])
def test_a_product_and_a_sum_of_products(dtype: torch.dtype, count: int, source: int, target: int) -> None:
    ours, theirs = rows(count, source, dtype, 1), rows(count, target, dtype, 2)
    assert_close(product(ours.T, theirs), ours.T @ theirs)
    total = rows(source, target, dtype, 3)
    expected = total.double() + ours.double().T @ theirs.double()
    place = total.data_ptr()
    add_product(total, ours, theirs)
    assert total.data_ptr() == place
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
    assert_close(total.double(), expected, atol=tolerance, rtol=tolerance)


def test_operands_may_be_views() -> None:
    wide, other, total = (rows(12, n, torch.float32, n) for n in (10, 6, 8))
    ours, theirs, part = wide[::2, 1:5], other[::2, ::2], total[:4, 1:4]
    expected = total.clone()
    expected[:4, 1:4] += ours.T @ theirs
    add_product(part, ours, theirs)
    assert_close(total, expected)
    assert_close(product(ours.T, theirs), ours.T @ theirs)
    fresh = torch.zeros(4, 3)
    add_product(fresh, ours, theirs)
    assert_close(fresh, ours.T @ theirs)


def test_a_matrix_by_its_own_transpose_is_symmetric() -> None:
    matrix = rows(30, 20, torch.float32, 0)
    gram = product(matrix.T, matrix)
    assert torch.equal(gram, gram.T)
    assert_close(gram, matrix.T @ matrix)


def test_dtypes_that_differ_are_an_error_as_in_pytorch() -> None:
    with pytest.raises(RuntimeError, match="same dtype"):
        product(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("module", ["bico", "flows.cli", "benchmarks"])
@pytest.mark.parametrize(("given", "expected"), [({}, "16"), ({"OPENBLAS_THREAD_TIMEOUT": "20"}, "20")])
def test_openblas_is_told_not_to_turn_in_circles_before_it_is_loaded(
    module: str, given: dict[str, str], expected: str
) -> None:
    code = f"import os, sys, {module}; print(os.environ['OPENBLAS_THREAD_TIMEOUT'], 'numpy' in sys.modules)"
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    found = subprocess.run([sys.executable, "-c", code], env=own | given, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [expected, "False"]
