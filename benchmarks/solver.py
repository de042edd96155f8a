"""Time and agreement of ways to an alignment map.

    python -m benchmarks.solver [--sizes 128,512,768,3072x768,3072] [--repeats 3] [--device cuda] [--clock cpu]

Milliseconds, medians of as many repeats as fit into `PATIENCE`. Three spectra: `full` (all values within a factor of
ten), `decay` (one value that stands out, the others even on a logarithmic scale down to 1e-7 of it, as covariances of real
models have it; the cut is at 1e-6), `low rank` (a fourth of the dimensions above float32 noise). Lines come as they are
measured. Set OMP_NUM_THREADS for both PyTorch's and SciPy's linear algebra.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import TypeVar

import scipy.linalg
import torch
from torch import Tensor

from benchmarks.measure import Clock, head, line, machine
from bico.linalg.procrustes import RANK_TOLERANCE, Completion, Solver, by_svd, procrustes

T = TypeVar("T")
PATIENCE = 4.0
"""Seconds after which nothing is repeated."""
ITERATION_TO = 1024
"""On a CPU, the iteration is left out beyond: 80 products of float64."""


def spectrum(kind: str, count: int) -> Tensor:
    match kind:
        case "full":
            return torch.linspace(1, 0.1, count, dtype=torch.float64)
        case "decay":
            return torch.cat([torch.ones(1), torch.logspace(-1.5, -7, count - 1)]).double()
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
    # What other ways to a map would be made of is timed too: halves of precision, inverses, products.
    return {
        "torch svd": lambda: torch.linalg.svd(cross, full_matrices=False),
        "scipy gesdd": lambda: svd(array, full_matrices=False, lapack_driver="gesdd", check_finite=False),
        "torch eigh": lambda: torch.linalg.eigh(torch.from_numpy(gram)),
        "scipy evd": lambda: scipy.linalg.eigh(gram, driver="evd", check_finite=False),
        "scipy evd, float32": lambda: scipy.linalg.eigh(gram.astype("float32"), driver="evd", check_finite=False),
        "tridiagonal form": lambda: scipy.linalg.lapack.dsytrd(gram, lower=1, lwork=32 * len(gram)),
        "inverse": lambda: torch.linalg.inv(torch.from_numpy(gram)),
        "product": lambda: torch.from_numpy(gram) @ torch.from_numpy(gram),
    }


def measured(work: Callable[[], T], clock: Clock, repeats: int) -> tuple[float, T]:
    """Median milliseconds, and what came out."""
    seconds, result = clock.timed(work)
    times = [seconds]
    while len(times) < repeats and sum(times) < PATIENCE:
        times.append(clock.timed(work)[0])
    return 1e3 * statistics.median(times), result


def compared(name: str, cross: Tensor, clock: Clock, repeats: int) -> list[str]:
    """One line: the reference, both solvers, and how far they are from it."""
    slow_ms, slow = measured(lambda: by_svd(cross, Completion.PARTIAL, RANK_TOLERANCE), clock, repeats)
    cells = [name, f"{slow_ms:.1f}"]
    for solver in Solver:
        if solver is Solver.ITERATION and clock.device == "cpu" and min(cross.shape) > ITERATION_TO:
            cells += ["", "", ""]
            continue
        ms, fast = measured(lambda solver=solver: procrustes(cross, solver=solver), clock, repeats)
        difference = float((slow.matrix - fast.matrix).abs().max())
        agreed = f"{difference:.0e}" if fast.rank == slow.rank else f"ranks {fast.rank} and {slow.rank}"
        cells += [f"{ms:.1f}", f"{slow_ms / ms:.2f}", agreed]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="128,512,768,3072x768,3072")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    Clock.add_option(parser)
    given = parser.parse_args()
    clock = Clock(given.clock, given.device)
    print(f"{machine(given.device)}. {clock}.\n")
    shapes = {}
    for size in given.sizes.split(","):
        rows, _, columns = size.partition("x")
        shapes[size] = int(rows), int(columns or rows)
    columns = [f"{solver}, {what}" for solver in Solver for what in ("ms", "ratio", "largest difference")]
    print(head(["cross-covariance", "SVD, ms", *columns]), flush=True)
    for size, shape in shapes.items():
        for kind in ("full", "decay", "low rank"):
            cross = cross_with(spectrum(kind, min(shape)), *shape).float().to(given.device)
            print(line(compared(f"{size} {kind}", cross, clock, given.repeats)), flush=True)
    print()
    for index, (size, shape) in enumerate(shapes.items()):
        found = ways(cross_with(spectrum("decay", min(shape)), *shape).to(given.device), given.device)
        if index == 0:
            print(head(["bare factorisation, ms", *found]))
        times = (measured(work, clock, given.repeats)[0] for work in found.values())
        print(line([size, *(f"{ms:.1f}" for ms in times)]), flush=True)


if __name__ == "__main__":
    main()
