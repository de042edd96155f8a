"""Carry a task vector over: evidence and the expert in, the target's task vector out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from torch import Tensor

from bico.methods import Method, Pair
from bico.methods.evidence import undeclared
from bico.models.loading import ModelFiles
from bico.parameter_gradients import ParameterGradient
from bico.procrustes import Completion
from bico.signals import SignalKey
from bico.task_vector import subtract
from storage.checkpoints import load_state, save_state
from storage.keys import Ref, artefact_key
from tasks.finetune import EXPERT
from tasks.gradients import read_parameter_gradients
from tasks.procrustes import SignalMaps, StoredMaps
from tasks.retries import RETRIES
from tasks.stage import Done, Workspace, open_model, run_stage

VERSION = 2
VECTOR = "task_vector.safetensors"


@dataclass(frozen=True)
class EvidenceRefs:
    """Where the evidence of one method at one sample count lies."""

    count: int = 0
    """Which of the nested calibration sets, as asked for (N, or K per class); 0 without calibration."""
    samples: int = 0
    """How many samples that set has."""
    maps: Sequence[SignalMaps] = ()
    gradients: Mapping[ParameterGradient, Ref] | None = None


@task(name="transfer", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def transfer_vector(
    space: Workspace, source: ModelFiles, target: ModelFiles, expert: Done, method: Method, evidence: EvidenceRefs
) -> Done | State[Done]:
    """Stores the target's task vector."""
    key = artefact_key(
        "transfer",
        VERSION,
        source=source.digest(),
        target=target.digest(),
        expert=expert.ref,
        method=method.name,
        settings=asdict(method),
        maps=sorted(part.key for part in evidence.maps),
        gradients={str(kind): ref for kind, ref in (evidence.gradients or {}).items()},
        count=evidence.count,
        samples=evidence.samples,
    )

    def build(out: Path) -> None:
        ours, theirs = open_model(source, space.device), open_model(target, space.device)
        pair = Pair.of(ours, theirs)
        fine_tuned = {name: tensor.to(ours.device) for name, tensor in load_state(expert.ref.path / EXPERT).items()}
        tau = subtract(fine_tuned, pair.source_state)
        save_state(out / VECTOR, method.transport(tau, pair, StoredEvidence(space, evidence)))

    return run_stage(space, "transfer", key, build, {"method": method.name, "samples": evidence.count})


class StoredEvidence:
    """Evidence in the store, read when a method asks for it."""

    def __init__(self, space: Workspace, refs: EvidenceRefs) -> None:
        self.samples = refs.samples
        self._maps = StoredMaps(space, refs.maps, refs.count)
        self._gradients, self._count, self._device = refs.gradients or {}, refs.count, space.device

    def map(self, key: SignalKey, completion: Completion) -> Tensor:
        return self._maps(key, completion).to(self._device)

    def gradient(self, kind: ParameterGradient) -> Mapping[str, Tensor]:
        if kind not in self._gradients:
            raise undeclared(f"parameter gradients ({kind})")
        read = read_parameter_gradients(self._gradients[kind], self._count)
        return {name: tensor.to(self._device) for name, tensor in read.items()}
