"""Maps of ViT-B/16 blocks: solved by nothing but processes, and by the flow that fans them out."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import random_pair, workers_of_one_thread
from bico.calibration.memory import covariance_shapes
from bico.calibration.signals import Signal, SignalKey
from bico.linalg.procrustes import MAP_RANK, MapRule, procrustes
from flows.services.fan_out import Cluster
from flows.services.server import prefect_api
from flows.settings import Settings
from storage.keys import artefact_key
from tasks.artefacts import array_name, new_covariances
from tasks.cached_stage import Workspace
from tasks.maps import BlockMaps, SignalMaps

COUNT = 10
"""Calibration samples: pictures."""
ROWS = COUNT * 197
"""A row per token."""
RULE = MapRule(rank=MAP_RANK)
SIGNALS = (Signal.INPUT, Signal.OUTPUT_GRAD)

Cost = tuple[float, float]
"""CPU seconds of all processes, and seconds by the wall."""


def cost(work: Callable[[], Any]) -> Cost:
    """Of this process and of processes that ended while `work` ran."""
    before, started = os.times(), time.perf_counter()
    work()
    after, ended = os.times(), time.perf_counter()
    return sum(after[:4]) - sum(before[:4]), ended - started


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
            yield array_name(tensor.replace("blocks.0.", f"blocks.{block}."), signal, COUNT), cross


def solve(crosses: list[Tensor]) -> float:
    """CPU seconds of this process for a block's maps."""
    started = time.process_time()
    for cross in crosses:
        procrustes(cross, RULE)
    return time.process_time() - started


def bare(crosses: list[Tensor], blocks: int, workers: int) -> Cost:
    """Of processes of one thread that are ready, have the block's covariances, and write nothing."""
    with workers_of_one_thread(workers, solve, [torch.eye(300)]) as pool:
        started = time.perf_counter()
        used = pool.map(solve, [crosses] * blocks, chunksize=1)
        return sum(used), time.perf_counter() - started


def stages(covariances: dict[SignalKey, Tensor], blocks: int, settings: Settings) -> tuple[Workspace, list[BlockMaps]]:
    """Stores the covariances; what the flow is to solve."""
    space = Workspace(settings.store)

    def build(folder: Path) -> None:
        with new_covariances(folder, {}) as write:
            write(arrays(covariances, blocks))

    ref, _ = space.artefacts.get_or_create(artefact_key("benchmark", 1, blocks=blocks), build)
    wanted = []
    for block in range(blocks):
        parts = []
        for signal in SIGNALS:
            tensors = tuple(t.replace("blocks.0.", f"blocks.{block}.") for t, s in covariances if s is signal)
            parts.append(SignalMaps(ref, f"block-{block}", signal, tensors, (COUNT,), RULE))
        wanted.append(BlockMaps(f"block-{block}", tuple(parts)))
    return space, wanted


def measured(blocks: int, workers: int, home: Path) -> Iterator[tuple[str, Cost]]:
    """What the maps cost by themselves, by the flow, and what the flow costs by itself."""
    covariances = block_covariances()
    settings = Settings(home=home, workers=workers, device="cpu")
    space, wanted = stages(covariances, blocks, settings)

    def flow(parts: list[BlockMaps]) -> None:
        with prefect_api():
            with Cluster(settings) as cluster:
                cluster.solve(space, parts)

    yield f"{blocks} blocks, bare processes", bare(list(covariances.values()), blocks, workers)
    yield "the same by the flow, with the store", cost(lambda: flow(wanted))
    yield "the flow with nothing left to do", cost(lambda: flow(wanted))
    yield "the flow of one block, with nothing left to do", cost(lambda: flow(wanted[:1]))
