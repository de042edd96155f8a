"""Judge a transfer block by block, from what the store holds."""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from bico.calibration.budget import Budget
from bico.models.loading import ModelFiles
from bico.reporting.block_report import BlockReport, judge_blocks
from storage.keys import Ref
from tasks.artefacts import determined_shares, read_vector
from tasks.cached_stage import Workspace
from tasks.inputs import open_model
from tasks.maps import SignalMaps
from tasks.retries import RETRIES


@task(
    name="report-blocks",
    task_run_name="report-blocks {name}",
    tags=["cpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def report_blocks(
    space: Workspace,
    target: ModelFiles,
    name: str,
    vector: Ref,
    maps: Sequence[SignalMaps],
    budget: Budget,
    alpha: float,
) -> list[BlockReport]:
    """Tells how well the maps of a transfer are determined and how much it changes each block.

    Arguments:
        name: The task's.
        maps: Those that the method used.
        budget: With which samples.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for part in maps:
        found = determined_shares(space.artefacts.ref(part.key), part.names(budget.asked))
        shares.setdefault((part.group, part.signal.value), []).extend(found)
    opened = open_model(target, space.device)
    state = {key: tensor.detach().cpu() for key, tensor in opened.state().items()}
    return judge_blocks(name, opened.sites, shares, state, read_vector(vector), alpha)
