"""Solve the alignment maps of one block: the unit that is fanned out on Dask."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.linalg.procrustes import AlignmentMap, procrustes
from tasks.artefacts import write_maps
from tasks.cached_stage import Done, Workspace, as_state
from tasks.maps import BlockMaps, by_covariances
from tasks.retries import RETRIES


@task(
    name="procrustes",
    task_run_name="procrustes {block.group}",
    tags=["cpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def solve_maps(space: Workspace, block: BlockMaps) -> Done | State[Done]:
    """Stores a block's maps with their spectra and ranks."""
    parts = {part.key: part for part in block.parts}

    def build(folders: dict[str, Path]) -> None:
        for alike in by_covariances([parts[key] for key in folders]):
            solved: dict[str, dict[str, AlignmentMap]] = {part.key: {} for part in alike}
            for name, cross in alike[0].crosses():
                for part in alike:
                    solved[part.key][name] = procrustes(cross.to(space.device), part.rule)
            for part in alike:
                write_maps(folders[part.key], solved[part.key], part.rule)

    made = space.artefacts.get_or_create_many(parts, build, {"stage": "procrustes", "block": block.group})
    ref, _ = made[block.parts[0].key]
    return as_state(Done("procrustes", ref, all(cached for _, cached in made.values())))
