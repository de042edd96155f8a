"""Where maps are solved: in this process, or on Dask once that is worth the start of a cluster."""

import time

import torch

from flows.config import Settings
from tasks.cached_stage import Done, Workspace, result_of
from tasks.maps import BlockMaps
from tasks.procrustes import solve_maps
from tasks.progress import reported

CLUSTER_START = 10.0
"""Seconds until a local cluster has solved its first map: workers import PyTorch and Prefect, on the cores that would
solve meanwhile (8 to 12 s on two quiet cores)."""


def solve(space: Workspace, blocks: list[BlockMaps], settings: Settings) -> list[Done]:
    """Solves the maps of blocks. A cluster that the settings name is used; a local one is started if what is left would
    take longer without, by the time that the blocks so far have taken.

    Raises:
        ClusterError: If the cluster is lost again and again, has no workers, or takes too long.
    """
    if settings.dask_scheduler:
        return _on_dask(space, blocks, settings)
    done: list[Done] = []
    started = time.monotonic()
    limited = solve_maps if settings.stage_timeout is None else solve_maps.with_options(timeout_seconds=settings.stage_timeout)  # fmt: skip
    with reported("solve-maps", "blocks", len(blocks)) as advance:
        for block in blocks:
            if done and pays((time.monotonic() - started) / len(done), len(blocks) - len(done), settings.workers):
                break
            done.append(result_of(limited, space, block))
            advance(len(done))
    rest = blocks[len(done) :]
    return [*done, *(_on_dask(space, rest, settings) if rest else ())]


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


def _on_dask(space: Workspace, blocks: list[BlockMaps], settings: Settings) -> list[Done]:
    from flows.fan_out import solve_blocks  # brings Dask, which a run without large maps does without

    return solve_blocks(space, blocks, settings)
