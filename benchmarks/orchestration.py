"""What orchestration costs: fanning blocks out on Dask, and running a finished flow again.

    python -m benchmarks.orchestration [--blocks 12] [--workers 1] [--skip-demo | --skip-blocks]

In CPU seconds of this process and of all that it starts (the API, the scheduler, the workers), since a machine that is
shared tells nothing by the wall. First the maps of some blocks of ViT-B/16 shape (the inputs and output gradients of a
block, 1970 rows as from ten pictures): solved in a plain loop, then through the flow that the product uses, which also
reads covariances from the store and writes maps to it, and then through the same flow with nothing left to do, which is
what orchestration costs alone: its start, and its tasks. Then `bico demo` in an empty home, and again in the same one.
"""

# First: this sets the environment that Prefect and Dask read when they are imported.
import flows.cli  # noqa: F401, I001

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import machine, random_pair, table
from bico.memory import covariance_shapes
from bico.procrustes import Completion, procrustes
from bico.signals import Signal, SignalKey
from flows.config import Settings
from flows.fan_out import dask_runner, fan_out
from flows.server import prefect_api
from storage.arrays import write_arrays
from storage.keys import artefact_key
from tasks.collect import array_name
from tasks.procrustes import BlockMaps, SignalMaps
from tasks.stage import Workspace

ROWS = 1970
"""Ten pictures of 197 tokens."""
SIGNALS = (Signal.INPUT, Signal.OUTPUT_GRAD)


def block_covariances() -> dict[SignalKey, Tensor]:
    """Covariances of one block's shapes: rows share a mean, and beyond it features fade as those of real models do."""
    source, target = random_pair("vitb16-cut")
    sites = [site for site in target.sites if site.block == 0]
    generator = torch.Generator().manual_seed(0)

    def rows(features: int) -> Tensor:
        fading = torch.logspace(-1, -2.5, features)
        return torch.randn(ROWS, features, generator=generator) * fading + torch.ones(features)

    shapes = covariance_shapes(source.sites, target.sites, sites, SIGNALS)
    return {key: rows(a).T @ rows(b) for key, (a, b) in shapes.items()}


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process and of processes that ended while `work` ran."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def arrays(covariances: dict[SignalKey, Tensor], blocks: int) -> Iterator[tuple[str, Tensor]]:
    for block in range(blocks):
        for (tensor, signal), cross in covariances.items():
            yield array_name(tensor.replace("blocks.0.", f"blocks.{block}."), signal, 10), cross


def fan_out_costs(blocks: int, workers: int, home: Path) -> list[list[str]]:
    covariances = block_covariances()
    settings = Settings(home=home, workers=workers, device="cpu")
    space = Workspace(settings.store)
    ref, _ = space.artefacts.get_or_create(
        artefact_key("benchmark", 1, blocks=blocks),
        lambda folder: write_arrays(folder / "covariances", arrays(covariances, blocks)),
    )
    wanted = []
    for block in range(blocks):
        parts = []
        for signal in SIGNALS:
            tensors = tuple(t.replace("blocks.0.", f"blocks.{block}.") for t, s in covariances if s is signal)
            parts.append(SignalMaps(ref, f"block-{block}", signal, tensors, (10,), Completion.PARTIAL))
        wanted.append(BlockMaps(f"block-{block}", tuple(parts)))

    def flow() -> None:
        with prefect_api():
            fan_out.with_options(task_runner=dask_runner(settings))(space, wanted)

    bare = cpu_seconds(lambda: [procrustes(cross) for _ in range(blocks) for cross in covariances.values()])
    whole = cpu_seconds(flow)
    alone = cpu_seconds(flow)
    return [
        [f"{blocks} blocks, plain loop", f"{bare:.1f}", ""],
        ["the same by the flow, with the store", f"{whole:.1f}", f"{whole / bare:.2f} of the loop"],
        ["the flow with nothing left to do", f"{alone:.1f}", f"{100 * alone / bare:.0f} % of the loop"],
    ]


def demo_costs(home: Path) -> list[list[str]]:
    def demo() -> None:
        command = [sys.executable, "-m", "flows.cli", "demo", "--home", str(home), "--out", str(home / "out")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    cold, warm = cpu_seconds(demo), cpu_seconds(demo)
    return [
        ["`bico demo`, empty home", f"{cold:.1f}", ""],
        ["`bico demo` again", f"{warm:.1f}", f"{100 * warm / cold:.0f} % of the first"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--skip-demo", action="store_true")
    parser.add_argument("--skip-blocks", action="store_true")
    given = parser.parse_args()
    print(f"{machine()}. CPU seconds of all processes, one run.\n", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        home = Path(scratch).absolute()
        if not given.skip_blocks:
            rows += fan_out_costs(given.blocks, given.workers, home / "blocks")
        if not given.skip_demo:
            rows += demo_costs(home / "demo")
    print(table(["", "CPU s", ""], rows))


if __name__ == "__main__":
    main()
