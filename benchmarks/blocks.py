"""Maps of ViT-B/16 blocks: in a plain loop, and by the flow that fans them out."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import random_pair
from bico.memory import covariance_shapes
from bico.procrustes import Completion, procrustes
from bico.signals import Signal, SignalKey
from flows.config import Settings
from flows.fan_out import dask_runner, fan_out
from flows.server import prefect_api
from storage.arrays import write_arrays
from storage.keys import artefact_key
from tasks.names import array_name
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


def arrays(covariances: dict[SignalKey, Tensor], blocks: int) -> Iterator[tuple[str, Tensor]]:
    for block in range(blocks):
        for (tensor, signal), cross in covariances.items():
            yield array_name(tensor.replace("blocks.0.", f"blocks.{block}."), signal, 10), cross


def ways(blocks: int, workers: int, home: Path) -> dict[str, Callable[[], object]]:
    """A plain loop, the flow, and the flow with nothing left to do; to be called in this order."""
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

    return {
        f"{blocks} blocks, plain loop": lambda: [procrustes(c) for _ in range(blocks) for c in covariances.values()],
        "the same by the flow, with the store": flow,
        "the flow with nothing left to do": flow,
    }
