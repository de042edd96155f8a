"""Carry a task vector over: maps and the expert in, the target's task vector out."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.methods import Pair, get_method
from bico.methods.protocol import no_maps
from bico.models.loading import ModelFiles
from bico.task_vector import subtract
from storage.checkpoints import load_state, save_state
from storage.keys import artefact_key
from tasks.finetune import EXPERT
from tasks.procrustes import SignalMaps, StoredMaps
from tasks.stage import Done, Workspace, open_model, run_stage

VERSION = 1
VECTOR = "task_vector.safetensors"


@task(name="transfer", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False)
def transfer_vector(
    space: Workspace,
    source: ModelFiles,
    target: ModelFiles,
    expert: Done,
    method: str,
    parts: list[SignalMaps],
    samples: int,
) -> Done | State[Done]:
    """Stores the target's task vector.

    Arguments:
        parts: The solved maps of the signals the method needs; none for a method without calibration.
        samples: Which of the nested calibration sets; 0 without calibration.
    """
    carrier = get_method(method)
    key = artefact_key(
        "transfer",
        VERSION,
        source=source.digest(),
        target=target.digest(),
        expert=expert.ref,
        method=method,
        settings=vars(carrier) if hasattr(carrier, "__dict__") else {},
        maps=sorted(part.key for part in parts),
        samples=samples,
    )

    def build(out: Path) -> None:
        ours, theirs = open_model(source, space.device), open_model(target, space.device)
        pair = Pair(ours.sites, theirs.sites, ours.state(), theirs.state())
        fine_tuned = {name: tensor.to(ours.device) for name, tensor in load_state(expert.ref.path / EXPERT).items()}
        maps = StoredMaps(space, parts, samples) if parts else no_maps
        save_state(out / VECTOR, carrier.transport(subtract(fine_tuned, pair.source_state), pair, maps))

    return run_stage(space, "transfer", key, build, {"method": method, "samples": samples})
