"""Time and agreement of ways to an alignment map.

    python -m benchmarks.solver [--sizes 128,256,512,768,768x3072,3072] [--repeats 3] [--device cuda]

Medians over the repeats, milliseconds. Three spectra: `full` (all values within a factor of ten), `decay` (even on a
logarithmic scale down to 1e-7 of the largest, as covariances of real models have it; the cut is at 1e-6), `low rank` (a
fourth of the dimensions above float32 noise). Set OMP_NUM_THREADS for both PyTorch's and SciPy's linear algebra.
"""

import argparse
from collections.abc import Callable

import scipy.linalg
import torch
from torch import Tensor

from benchmarks.measure import machine, median_time, table
from bico.procrustes import RANK_TOLERANCE, Completion, by_svd, procrustes


def spectrum(kind: str, count: int) -> Tensor:
    match kind:
        case "full":
            return torch.linspace(1, 0.1, count, dtype=torch.float64)
        case "decay":
            return torch.logspace(0, -7, count, dtype=torch.float64)
        case "low rank":
            noise = torch.full((count - count // 4,), 1e-8, dtype=torch.float64)
            return torch.cat([torch.logspace(0, -5, count // 4, dtype=torch.float64), noise])
    raise ValueError(kind)


def cross_with(values: Tensor, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    bases = (
        torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=generator)).Q
        for n in (rows, columns)
    )
    left, right = bases
    return left * values @ right.T


def ways(cross: Tensor, device: str) -> dict[str, Callable[[], object]]:
    """What is timed: whole maps first, then bare factorisations."""
    if device == "cuda":
        drivers = {
            f"torch svd {driver}": lambda driver=driver: torch.linalg.svd(cross, full_matrices=False, driver=driver)
            for driver in ("gesvd", "gesvdj", "gesvda")
        }
        gram = cross.T @ cross if cross.shape[0] >= cross.shape[1] else cross @ cross.T
        return drivers | {"torch eigh": lambda: torch.linalg.eigh(gram)}
    array = cross.numpy()
    gram = array.T @ array if array.shape[0] >= array.shape[1] else array @ array.T
    svd = scipy.linalg.svd
    return {
        "torch svd": lambda: torch.linalg.svd(cross, full_matrices=False),
        "scipy gesdd": lambda: svd(array, full_matrices=False, lapack_driver="gesdd", check_finite=False),
        "scipy gesvd": lambda: svd(array, full_matrices=False, lapack_driver="gesvd", check_finite=False),
        "torch eigh": lambda: torch.linalg.eigh(torch.from_numpy(gram)),
        "scipy evd": lambda: scipy.linalg.eigh(gram, driver="evd", check_finite=False),
        "scipy evr": lambda: scipy.linalg.eigh(gram, driver="evr", check_finite=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="128,256,512,768,3072x768,3072")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    print(f"{machine(given.device)}\n")
    maps, factorisations = [], {}
    for size in given.sizes.split(","):
        rows, _, columns = size.partition("x")
        shape = int(rows), int(columns or rows)
        for kind in ("full", "decay", "low rank"):
            cross = cross_with(spectrum(kind, min(shape)), *shape).float().to(given.device)
            slow, fast = by_svd(cross, Completion.PARTIAL, RANK_TOLERANCE), procrustes(cross)
            reference = median_time(
                lambda cross=cross: by_svd(cross, Completion.PARTIAL, RANK_TOLERANCE), given.repeats, given.device
            )
            ours = median_time(lambda cross=cross: procrustes(cross), given.repeats, given.device)
            difference = float((slow.matrix - fast.matrix).abs().max())
            numbers = [f"{1e3 * reference:.1f}", f"{1e3 * ours:.1f}", f"{reference / ours:.2f}"]
            maps.append([f"{size} {kind}", *numbers, f"{difference:.0e}", f"{fast.rank} / {slow.rank}"])
        factorisations[size] = {
            name: 1e3 * median_time(work, given.repeats, given.device)
            for name, work in ways(
                cross_with(spectrum("decay", min(shape)), *shape).to(given.device), given.device
            ).items()
        }
    header = ["cross-covariance", "by_svd, ms", "procrustes, ms", "ratio", "largest difference", "ranks"]
    print(table(header, maps), end="\n\n")
    names = list(next(iter(factorisations.values())))
    print(
        table(
            ["bare factorisation, ms", *names],
            [[size, *(f"{found[name]:.1f}" for name in names)] for size, found in factorisations.items()],
        )
    )


if __name__ == "__main__":
    main()
