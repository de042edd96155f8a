"""Carry a LoRA adapter over, or make one of what is carried: evidence and the expert in, the target's adapter out."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.adapters.carry import Given, carry, find_in
from bico.adapters.dense import as_task_vector
from bico.adapters.files import read_adapter, write_adapter
from bico.adapters.folder import is_adapter
from bico.adapters.names import locate
from bico.methods import Method
from bico.methods.settings import identity
from bico.models.loading import ModelFiles
from bico.models.protocol import Blockwise
from storage.keys import Ref, artefact_key
from tasks.artefacts import adapter_folder, read_task_vector, write_told, write_vector
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.evidence import EvidenceRefs, StoredEvidence
from tasks.inputs import open_model
from tasks.retries import RETRIES

VERSION = 1


def carry_key(
    space: Workspace,
    source: ModelFiles,
    target: ModelFiles,
    expert: Ref,
    method: Method,
    evidence: EvidenceRefs,
    checkpoint: str | None,
    rank: int | None,
) -> str:
    """The expert's own key tells what lies at the checkpoint."""
    return artefact_key(
        "carry-adapter",
        VERSION,
        source=source.digest(),
        target=target.digest(),
        expert=expert,
        method=method.name,
        settings=identity(method),
        rank=rank,
        **evidence.identity,
    )


@task(name="carry-adapter", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def carry_adapter(
    space: Workspace,
    source: ModelFiles,
    target: ModelFiles,
    expert: Ref,
    method: Method,
    evidence: EvidenceRefs,
    checkpoint: str | None,
    rank: int | None,
) -> Done | State[Done]:
    """Stores the target's adapter, and beside it the task vector that it is, read back from its files: what is measured is what
    is written.

    Arguments:
        checkpoint: Where the expert comes from; the folder of an adapter, if it is one.
        rank: Of the target's adapter, in place of the source's.
    """
    key = carry_key(space, source, target, expert, method, evidence, checkpoint, rank)

    def build(out: Path) -> None:
        ours, theirs = open_model(source, space.device), open_model(target, space.device)
        found = find_in(checkpoint, ours, source.family) if checkpoint and is_adapter(checkpoint) else None
        given = Given(lambda: read_task_vector(expert, ours.state()), found)
        made = carry(method, given, ours, theirs, StoredEvidence(space, evidence), rank)
        folder = write_adapter(made.adapter, adapter_folder(out), made.paths)
        if not isinstance(theirs, Blockwise):  # of a larger model it is formed when it is used, and only in parts
            write_vector(out, as_task_vector(locate(read_adapter(folder), theirs)), theirs.state())
        write_told(out, made.kept, made.notes)

    about = {"method": method.name, "samples": evidence.budget.asked, "rank": rank}
    return run_stage(space, "carry-adapter", key, build, about)
