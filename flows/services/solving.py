"""Where maps are solved: in this process, or on Dask once that is worth the start of a cluster."""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import torch

from flows.settings import Settings
from tasks.cached_stage import Done, Workspace, result_of
from tasks.maps import BlockMaps
from tasks.procrustes import solve_maps
from tasks.progress import reported

if TYPE_CHECKING:
    from flows.services.fan_out import Cluster

CLUSTER_START = 10.0
"""Seconds until a local cluster has solved its first map: workers import PyTorch and Prefect, on the cores that would
solve meanwhile (8 to 12 s on two quiet cores)."""


class Solver:
    """Solves the maps of blocks, in this process or on a cluster. A cluster that the settings name is used; a local one is
    started once what is left of a draw would take longer without, by the time that the draw's blocks so far have taken, and
    serves until the context ends.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._cluster: Cluster | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def solve(self, space: Workspace, blocks: list[BlockMaps]) -> list[Done]:
        """Solves the maps of blocks.

        Raises:
            ClusterError: If the cluster is lost again and again, has no workers, or takes too long.
        """
        if self._settings.dask_scheduler or self._cluster:
            return self._on_dask(space, blocks)
        done: list[Done] = []
        started, limit = time.monotonic(), self._settings.stage_timeout
        limited = solve_maps if limit is None else solve_maps.with_options(timeout_seconds=limit)
        with reported("solve-maps", "blocks", len(blocks)) as advance:
            for block in blocks:
                left = len(blocks) - len(done)
                if done and pays((time.monotonic() - started) / len(done), left, self._settings.workers):
                    break
                done.append(result_of(limited, space, block))
                advance(len(done))
        rest = blocks[len(done) :]
        return [*done, *(self._on_dask(space, rest) if rest else ())]

    def _on_dask(self, space: Workspace, blocks: list[BlockMaps]) -> list[Done]:
        from flows.services.fan_out import Cluster  # brings Dask, which a run without large maps does without

        if self._cluster is None:
            self._cluster = self._stack.enter_context(Cluster(self._settings))
        return self._cluster.solve(space, blocks)


def pays(seconds: float, left: int, workers: int, threads: int | None = None) -> bool:
    """Whether a local cluster solves what is left sooner.

    Arguments:
        seconds: What a block takes in this process, with all its threads.
        workers: Processes of the cluster, of one thread each: alone, a thread takes some √threads times as long as all.

    Example:
        >>> pays(0.5, 12, workers=2, threads=2), pays(60.0, 12, workers=2, threads=2), pays(60.0, 12, workers=2, threads=16)
        (False, True, False)
    """
    threads = threads or torch.get_num_threads()
    there = seconds * threads**0.5 * -(-left // workers)
    return CLUSTER_START + there < seconds * left
