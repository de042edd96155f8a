"""Judge a transfer block by block, from what the store holds."""

from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from bico.calibration.scales import Scale, Side
from bico.methods.strength import Sizes, output_stood_for, sizes_of
from bico.models.depth import Depth, take_sites
from bico.models.loading import ModelFiles
from bico.models.matching import match_sites
from bico.models.protocol import weights_of
from bico.reporting.block_report import BlockReport, judge_blocks
from storage.keys import Ref
from tasks.artefacts import determined_shares
from tasks.cached_stage import Workspace
from tasks.evidence import EvidenceRefs, StoredEvidence
from tasks.inputs import open_model, open_update
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
    models: tuple[ModelFiles, ModelFiles],
    name: str,
    vector: Ref,
    evidence: EvidenceRefs,
    alpha: float,
) -> list[BlockReport]:
    """Tells how well the maps of a transfer are determined and how much it changes each block.

    Arguments:
        models: Source and target.
        name: The task's.
        evidence: What the method used.
    """
    shares: dict[tuple[str, str], list[float]] = {}
    for part in evidence.maps:
        found = determined_shares(space.artefacts.ref(part.key), part.names(evidence.budget.asked))
        shares.setdefault((part.group, part.signal.value), []).extend(found)
    source, opened = (open_model(files, space.device) for files in models)
    sizes = None
    if evidence.scales or evidence.pseudo_labelled_scales:
        stored, matched = StoredEvidence(space, evidence), match_sites(source.sites, opened.sites)
        summed = any(part.beside for part in evidence.maps)
        taken = take_sites(source.sites, opened.sites, Depth.SUM if summed else Depth.ONE)
        sizes = {
            site.name: (
                Sizes(
                    sizes_of(matched[site.name], Side.SOURCE, stored).reads,
                    Scale(output_stood_for(replace(taken[site.name], share=1.0), stored) ** 2, 1),
                ),
                sizes_of(site, Side.TARGET, stored),
            )
            for site in opened.sites
        }
    update = open_update(models[1], space.device, vector)
    return judge_blocks(name, opened.sites, shares, weights_of(opened), update, alpha, sizes)
