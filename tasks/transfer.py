"""Carry a task vector over: evidence and the expert in, the target's task vector out."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.methods import Method, Pair
from bico.methods.settings import identity
from bico.models.loading import ModelFiles
from storage.keys import Ref, artefact_key
from tasks.artefacts import read_task_vector, write_vector
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.evidence import EvidenceRefs, StoredEvidence
from tasks.inputs import open_model
from tasks.retries import RETRIES

VERSION = 2


def transfer_key(
    space: Workspace, source: ModelFiles, target: ModelFiles, expert: Ref, method: Method, evidence: EvidenceRefs
) -> str:
    return artefact_key(
        "transfer",
        VERSION,
        source=source.digest(),
        target=target.digest(),
        expert=expert,
        method=method.name,
        settings=identity(method),
        **evidence.identity,
    )


@task(name="transfer", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def transfer_vector(
    space: Workspace, source: ModelFiles, target: ModelFiles, expert: Ref, method: Method, evidence: EvidenceRefs
) -> Done | State[Done]:
    """Stores the target's task vector."""
    key = transfer_key(space, source, target, expert, method, evidence)

    def build(out: Path) -> None:
        pair = Pair.of(open_model(source, space.device), open_model(target, space.device))
        tau = read_task_vector(expert, pair.source_state)
        write_vector(out, method.transport(tau, pair, StoredEvidence(space, evidence)), pair.target_state)

    return run_stage(space, "transfer", key, build, {"method": method.name, "samples": evidence.budget.asked})
