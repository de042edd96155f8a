"""Judge a transfer block by block, from what the store holds."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from bico.models.loading import ModelFiles
from bico.reporting.block_report import BlockReport, judge
from storage.arrays import iterate_arrays, read_attrs
from storage.artefacts import folder_of
from storage.checkpoints import load_state
from tasks.cached_stage import Done, Workspace
from tasks.inputs import open_model
from tasks.names import array_name
from tasks.procrustes import SignalMaps
from tasks.retries import RETRIES
from tasks.transfer import VECTOR


@task(
    name="judge-layers",
    task_run_name="judge-layers {name}",
    tags=["cpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def report_blocks(
    space: Workspace,
    target: ModelFiles,
    name: str,
    vector: Done,
    maps: Sequence[SignalMaps],
    samples: int,
    alpha: float,
) -> list[BlockReport]:
    """Tells how well the maps of a transfer are determined and how much it changes each block.

    Arguments:
        name: The task's.
        maps: Those that the method used.
        samples: At which sample count.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for part in maps:
        folder = folder_of(space.artefacts.ref(part.key)) / "maps"
        ranks = read_attrs(folder)["ranks"]
        names = {f"{n}/spectrum": n for n in (array_name(t, part.signal, samples) for t in part.tensors)}
        for stored, spectrum in iterate_arrays(folder, names):
            shares.setdefault((part.group, part.signal.value), []).append(ranks[names[stored]] / spectrum.numel())
    opened = open_model(target, space.device)
    state = {key: tensor.detach().cpu() for key, tensor in opened.state().items()}
    return judge(name, opened.sites, shares, state, load_state(folder_of(vector.ref) / VECTOR), alpha)
