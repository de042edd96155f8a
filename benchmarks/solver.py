"""What one map costs, from its rows to its factors, against the width of the layer.

    python -m benchmarks.solver [--widths 768,1536,3072,6144,14336] [--rows 512,1024,4096] [--rank 128] [--repeats 3]
        [--svd-to 1536] [--device cuda] [--clock cpu]

Rows of two layers of one width share their strongest directions, on a logarithmic scale over three orders of magnitude, under noise.
Printed are seconds for adding the rows up (in batches of 512) and for solving, medians of the repeats; the memory of what is
kept between the two; how much of what the exact map of that rank agrees with the found one gets (the sum of the strongest
singular values, by a QR decomposition of the rows, up to 1,024 of them); and the float64 SVD of the whole covariance up to the
width of `--svd-to`. The last lines give the exponents: the slope of log seconds over log width. Set OMP_NUM_THREADS for
both PyTorch's and SciPy's linear algebra.
"""

import argparse
import math
import statistics
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.measure import Clock, head, line, machine
from bico.calibration.covariances import Covariances, add_rows
from bico.calibration.signals import Signal
from bico.linalg.procrustes import MAP_RANK, MapRule, procrustes
from bico.linalg.sketch import Sketch

KEY = ("site", Signal.INPUT)
BATCH = 512
EXACT_TO = 1024
"""Rows up to which the exact map is found for comparison."""


def layer_rows(rows: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Rows of two layers, which see the same `rows` tokens in coordinates of their own."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(rows, min(rows, width), generator=generator) * torch.logspace(0, -3, min(rows, width))
    found = [
        shared @ torch.randn(shared.shape[1], width, generator=generator) / math.sqrt(width)
        + 1e-3 * torch.randn(rows, width, generator=generator)
        for _ in range(2)
    ]
    return found[0].to(device), found[1].to(device)


def collect(ours: Tensor, theirs: Tensor, rank: int | None) -> Covariances:
    sums: Covariances = {}
    for a, b in zip(ours.split(BATCH), theirs.split(BATCH), strict=True):
        add_rows(sums, KEY, a, b, rank)
    return sums


def best(ours: Tensor, theirs: Tensor, rank: int) -> float:
    """The sum of the strongest singular values of the covariance, without forming it."""
    first, second = (torch.linalg.qr(rows.double().T, mode="r").R for rows in (ours, theirs))
    return float(torch.linalg.svdvals(first @ second.T)[:rank].sum())


def agreement(ours: Tensor, theirs: Tensor, left: Tensor, right: Tensor) -> float:
    return float(((ours @ left).double() * (theirs @ right).double()).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="768,1536,3072,6144,14336")
    parser.add_argument("--rows", default="512,1024,4096")
    parser.add_argument("--rank", type=int, default=MAP_RANK)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--svd-to", type=int, default=1536)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    Clock.add_option(parser)
    given = parser.parse_args()
    clock, rule = Clock(given.clock, given.device), MapRule(rank=given.rank)
    widths, counts = ([int(n) for n in text.split(",")] for text in (given.widths, given.rows))
    print(f"{machine(given.device)}. {clock}, medians of {given.repeats}; {given.rank} directions.\n")
    columns = ["width", "rows", "kept as", "kept, MB", "collect, s", "solve, s", "agreement, %", "float64 SVD, s"]
    print(head(columns), flush=True)
    spent: dict[int, list[float]] = {}
    for width in widths:
        for rows in counts:
            ours, theirs = layer_rows(rows, width, given.device)
            times = []
            for _ in range(given.repeats):
                collecting, sums = clock.timed(lambda ours=ours, theirs=theirs: collect(ours, theirs, rule.most))
                solving, found = clock.timed(lambda sums=sums: procrustes(sums[KEY], rule))
                times.append((collecting, solving))
            collecting, solving = (statistics.median(column) for column in zip(*times, strict=True))
            spent.setdefault(rows, []).append(collecting + solving)
            kept = sums[KEY]
            parts = (kept.range, kept.corange) if isinstance(kept, Sketch) else (kept,)
            exact = plain = ""
            if rows <= EXACT_TO:
                share = agreement(ours, theirs, found.left, found.right) / best(ours, theirs, given.rank)
                exact = f"{100 * share:.1f}"
            if width <= given.svd_to:
                whole = collect(ours, theirs, None)[KEY].double()
                plain = f"{clock.timed(lambda whole=whole: torch.linalg.svd(whole, full_matrices=False))[0]:.3f}"
            form, size = type(kept).__name__.replace("Tensor", "covariance").lower(), sum(p.nbytes for p in parts) / 1e6
            cells = [str(width), str(rows), form, f"{size:.1f}", f"{collecting:.3f}", f"{solving:.3f}", exact, plain]
            print(line(cells), flush=True)
    print()
    for rows, seconds in spent.items():
        slopes = [
            f"{math.log(after / before) / math.log(wide / narrow):.1f}"
            for (narrow, wide), (before, after) in zip(pairwise(widths), pairwise(seconds), strict=True)
        ]
        print(f"Exponents at {rows} rows, from width to width: {', '.join(slopes)}.")


if __name__ == "__main__":
    main()
