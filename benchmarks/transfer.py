"""Time and memory of a whole transfer with models of real size and random weights (speed does not depend on them).

    python -m benchmarks.transfer --pair vitb16-vitb16 --samples 10,32 [--reference] [--repeats 3] [--sweep]
        [--workers 2] [--clock cpu]

Runs BiCo through the product's own functions and prints what collecting, solving, applying and storing take, the peak
memory, the operations per second (counted by `bico/reporting/cost.py`), and the floor: bare forward and backward passes of both
models, and the products of covariances and of applying at the speed of a matrix product measured in the same run.
`--workers` solves the maps in so many processes of one thread each, which wait ready when the time is taken, as the
pipeline fans them out; without it they are solved one after the other with all threads.
`--reference` runs a literal implementation in the same process, for the ratio: covariances per site and batch in
float64 on the CPU, nothing shared, one float64 SVD per site and side. `--sweep` instead compares one pass that serves all
sample counts with one that serves the largest. `--pair vitb16-cut` are the first blocks of two ViT-B/16 at full width.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import (
    PAIRS,
    Clock,
    PeakMemory,
    Solved,
    gemm_rate,
    machine,
    random_head,
    random_pair,
    random_pictures,
    scratch,
    table,
    workers_of_one_thread,
)
from bico.calibration.covariances import Batch, collect_signals, cross_covariances, split_at
from bico.calibration.signals import Signal, SignalKey, signal_key
from bico.calibration.token_grids import resample_tokens
from bico.linalg.procrustes import AlignmentMap, procrustes
from bico.methods import Pair
from bico.methods.bico import BiCo
from bico.models.clip.vit import ClipViT
from bico.models.matching import match_sites
from bico.reporting.cost import transfer_cost
from bico.task_vector import StateDict
from storage.arrays import read_arrays
from tasks.artefacts import new_covariances, write_maps

RULE = BiCo().rule
SIGNALS = dict.fromkeys((Signal.INPUT, Signal.OUTPUT_GRAD), RULE.most)
PHASES = ("collect", "maps", "apply", "store")


@dataclass(frozen=True)
class Work:
    """A pair of models and the samples they are calibrated with."""

    source: ClipViT
    target: ClipViT
    heads: tuple[Tensor, Tensor]
    pictures: tuple[Tensor, Tensor]
    labels: Tensor
    clock: Clock
    batch_size: int

    @classmethod
    def of(cls, pair: str, samples: int, clock: Clock, batch_size: int) -> "Work":
        device = clock.device
        models = random_pair(pair, device)
        heads = tuple(random_head(model) for model in models)
        pictures = tuple(random_pictures(model, samples) for model in models)
        return cls(*models, heads, pictures, torch.arange(samples, device=device) % 10, clock, batch_size)

    def batches(self, samples: int, snapshots: list[int]) -> list[Batch]:
        slices = split_at(samples, self.batch_size, snapshots)
        return [Batch(self.pictures[0][s], self.pictures[1][s], self.labels[s]) for s in slices]

    def task_vector(self) -> StateDict:
        generator = torch.Generator().manual_seed(4)
        state = self.source.state()
        return {k: 1e-3 * torch.randn(v.shape, generator=generator).to(self.clock.device) for k, v in state.items()}

    def collect(self, snapshots: list[int]) -> dict:
        """The covariances of the largest snapshot."""
        covariances = {}
        batches = self.batches(snapshots[-1], snapshots)
        for _, covariances in cross_covariances(  # noqa: B007 - the last one is wanted
            self.source, self.target, batches, self.heads, SIGNALS, snapshots
        ):
            pass
        return covariances

    def bare_passes(self, samples: int) -> None:
        """Forward and backward of both models without hooks; gradients reach the first block, not the weights."""
        for model, head, side in zip((self.source, self.target), self.heads, ("source", "target"), strict=True):
            start = model.model.visual.class_embedding.requires_grad_()
            for batch in self.batches(samples, [samples]):
                model.loss(getattr(batch, side), batch.labels, head).backward()
            start.requires_grad_(False)
            start.grad = None


Solve = Callable[[dict[SignalKey, Tensor]], dict[SignalKey, AlignmentMap]]


def one_by_one(covariances: dict[SignalKey, Tensor]) -> dict[SignalKey, AlignmentMap]:
    """A covariance goes when its map is there, as in `bico.rehoming.in_memory` and in the pipeline."""
    return {key: procrustes(covariances.pop(key), RULE) for key in [*covariances]}


@contextmanager
def solver(workers: int) -> Iterator[Solve]:
    """Solves maps in this process, or in workers of one thread each."""
    if not workers:
        yield one_by_one
        return
    with workers_of_one_thread(workers, procrustes, torch.eye(300)) as pool:

        def fan_out(covariances: dict[SignalKey, Tensor]) -> dict[SignalKey, AlignmentMap]:
            largest_first = sorted(covariances, key=lambda key: -min(covariances[key].shape))
            waiting = [(key, pool.apply_async(procrustes, (covariances.pop(key), RULE))) for key in largest_first]
            return {key: result.get() for key, result in waiting}

        yield fan_out


def fast(work: Work, samples: int, solve: Solve = one_by_one) -> dict[str, float]:
    """Seconds per phase, by the product's own functions, and the peak of memory."""
    pair = Pair.of(work.source, work.target)
    tau, memory, took = work.task_vector(), PeakMemory(), {}
    took["collect"], covariances = work.clock.timed(lambda: work.collect([samples]))
    arrays = {f"{tensor}/{signal}": cross for (tensor, signal), cross in covariances.items()}
    took["maps"], maps = work.clock.timed(lambda: solve(covariances))
    took["apply"], _ = work.clock.timed(lambda: BiCo().transport(tau, pair, Solved(samples, maps)))
    took["peak"] = memory.read()
    with scratch() as place:
        folder = Path(place)
        solved = {f"{tensor}/{signal}": found for (tensor, signal), found in maps.items()}

        def store() -> None:
            with new_covariances(folder, {}) as write:
                write(arrays.items())
            write_maps(folder, solved, RULE)
            for group in ("covariances", "maps"):
                read_arrays(folder / group)

        took["store"], _ = work.clock.timed(store)
    return took


def reference(work: Work, samples: int) -> dict[str, float]:
    """The same by the letter of the paper: float64 on the CPU, a covariance and an SVD per site and side."""
    matched = match_sites(work.source.sites, work.target.sites)
    tau, memory, took = work.task_vector(), PeakMemory(), {}

    def collect() -> dict[tuple[str, Signal], Tensor]:
        sums: dict[tuple[str, Signal], Tensor] = {}
        models = (work.source, work.target)
        for batch in work.batches(samples, [samples]):
            ours, theirs = (
                {
                    key: value.cpu()
                    for key, value in collect_signals(m, x, batch.labels, h, list(m.sites), list(SIGNALS)).items()
                }
                for m, x, h in zip(models, (batch.source, batch.target), work.heads, strict=True)
            )
            for site in work.target.sites:
                for signal in SIGNALS:
                    rows = ours[signal_key(matched[site.name], signal)].double()
                    if rows.ndim == 3:
                        rows = resample_tokens(rows, work.source.grid, work.target.grid)
                    product = rows.flatten(0, -2).T @ theirs[signal_key(site, signal)].double().flatten(0, -2)
                    sums[site.name, signal] = sums.get((site.name, signal), 0) + product
        return sums

    def solve() -> dict[tuple[str, Signal], Tensor]:
        maps = {}
        for key, cross in covariances.items():
            u, _, vh = torch.linalg.svd(cross, full_matrices=False)
            maps[key] = u @ vh
        return maps

    def apply() -> list[Tensor]:
        return [
            maps[site.name, Signal.OUTPUT_GRAD].T
            @ matched[site.name].weight.read(tau).cpu().double()
            @ maps[site.name, Signal.INPUT]
            for site in work.target.sites
        ]

    took["collect"], covariances = work.clock.timed(collect)
    took["maps"], maps = work.clock.timed(solve)
    took["apply"], _ = work.clock.timed(apply)
    took["peak"] = memory.read()
    return took


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def report(work: Work, samples: int, repeats: int, with_reference: bool, solve: Solve) -> list[str]:
    """Runs of ours, of the bare passes and of the reference in turn, and what came out."""
    runs, bare, literal = [], [], []
    for _ in range(repeats):
        bare.append(work.clock.timed(lambda: work.bare_passes(samples))[0])
        runs.append(fast(work, samples, solve))
        if with_reference:
            literal.append(reference(work, samples))
    ours, passes, rate = medians(runs), statistics.median(bare), gemm_rate(work.clock)
    cost = transfer_cost(work.source, work.target, SIGNALS, samples)
    operations = {
        "collect": cost.forward + cost.backward + cost.covariances,
        "maps": cost.decompositions,
        "apply": 2 * cost.applying,
    }
    products = (cost.covariances + 2 * cost.applying) / rate
    whole = sum(ours[phase] for phase in PHASES[:3])
    other = medians(literal) if literal else {}
    rows = []
    for phase in PHASES:
        speed = f"{operations[phase] / ours[phase] / 1e9:.0f}" if phase in operations else ""
        rows.append([phase, f"{ours[phase]:.2f}", speed, *_beside(ours, other, phase)])
    rows.append(["collect + maps + apply", f"{whole:.2f}", "", *_beside(ours, other, *PHASES[:3])])
    rows.append(["peak memory, GB", f"{ours['peak'] / 1e9:.2f}", "", *_beside(ours, other, "peak", scale=1e-9)])
    header = ["", "ours, s", "GFLOP/s", *(["reference, s", "ratio"] if other else [])]
    return [
        f"## N = {samples}",
        "",
        table(header, rows),
        "",
        f"Floor: bare passes {passes:.2f} s ({(cost.forward + cost.backward) / passes / 1e9:.0f} GFLOP/s), products "
        f"{products:.2f} s at {rate / 1e9:.0f} GFLOP/s. Collecting takes {ours['collect'] / passes:.2f} of the bare "
        f"passes, {ours['collect'] / (passes + cost.covariances / rate):.2f} of these and its products; the whole "
        f"{whole / passes:.2f} of the bare passes, {whole / (passes + products):.2f} of the floor.",
        "",
    ]


def _beside(ours: dict, other: dict, *names: str, scale: float = 1.0) -> list[str]:
    if not other:
        return []
    if names[0] not in other:
        return ["", ""]
    there, here = (sum(values[name] for name in names) for values in (other, ours))
    return [f"{scale * there:.2f}", f"{there / here:.2f}"]


def sweep(work: Work, counts: list[int], repeats: int) -> str:
    """One pass that serves all sample counts against one that serves the largest."""
    runs = [
        [work.clock.timed(lambda chosen=chosen: work.collect(chosen))[0] for chosen in (counts[-1:], counts)]
        for _ in range(repeats)
    ]
    one, many = (statistics.median(run[i] for run in runs) for i in range(2))
    listed = ", ".join(map(str, counts))
    return (
        f"One pass for N = {listed}: {many:.2f} s, {many / one:.2f} of the pass for {counts[-1]} alone ({one:.2f} s)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=list(PAIRS), default="vitb16-vitb16")
    parser.add_argument("--samples", default="10,32")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per pass, as the product has them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    Clock.add_option(parser)
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that solve maps; their time shows by the wall"
    )
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    counts = sorted(int(n) for n in given.samples.split(","))
    clock = Clock(given.clock, given.device)
    work = Work.of(given.pair, counts[-1], clock, given.batch_size)
    print(f"# {given.pair}\n\n{machine(given.device)}. {clock}, medians of {given.repeats} runs.\n", flush=True)
    if given.sweep:
        print(sweep(work, counts, given.repeats))
        return
    with solver(given.workers) as solve:
        for samples in counts:
            print("\n".join(report(work, samples, given.repeats, given.reference, solve)), flush=True)


if __name__ == "__main__":
    main()
