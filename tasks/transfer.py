"""Carry a task vector over: evidence and the expert in, the target's task vector out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from torch import Tensor

from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.signals import SignalKey
from bico.linalg.procrustes import Completion
from bico.methods import Method, Pair
from bico.methods.evidence import undeclared
from bico.models.loading import ModelFiles
from storage.checkpoints import save_state
from storage.keys import Ref, artefact_key
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.finetune import task_vector_of
from tasks.gradients import read_parameter_gradients
from tasks.inputs import open_model
from tasks.maps import StoredMaps
from tasks.procrustes import SignalMaps
from tasks.retries import RETRIES

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
    unlabelled: int = 0
    """How many inputs without labels there are beside them."""
    pseudo_labelled_gradients: Mapping[ParameterGradient, Ref] | None = None
    """Of those."""


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
        **_beside(evidence),
    )

    def build(out: Path) -> None:
        ours, theirs = open_model(source, space.device), open_model(target, space.device)
        pair = Pair.of(ours, theirs)
        tau = task_vector_of(expert.ref, pair.source_state)
        save_state(out / VECTOR, method.transport(tau, pair, StoredEvidence(space, evidence)))

    return run_stage(space, "transfer", key, build, {"method": method.name, "samples": evidence.count})


def _beside(evidence: EvidenceRefs) -> dict[str, object]:
    """What unlabelled inputs add to the key; without them it is as it always was."""
    if not evidence.unlabelled:
        return {}
    gradients = {str(kind): ref for kind, ref in (evidence.pseudo_labelled_gradients or {}).items()}
    return {"unlabelled": evidence.unlabelled, "pseudo_labelled_gradients": gradients}


class StoredEvidence:
    """Evidence in the store, read when a method asks for it."""

    def __init__(self, space: Workspace, refs: EvidenceRefs) -> None:
        self.samples = refs.samples + refs.unlabelled
        self._maps = StoredMaps(space, refs.maps, refs.count)
        self._refs, self._device = refs, space.device

    def map(self, key: SignalKey, completion: Completion) -> Tensor:
        return self._maps(key, completion).to(self._device)

    def gradient(self, kind: ParameterGradient) -> Mapping[str, Tensor]:
        places = [
            (self._refs.gradients or {}, self._refs.count),
            (self._refs.pseudo_labelled_gradients or {}, self._refs.unlabelled),
        ]
        parts = [read_parameter_gradients(refs[kind], count) for refs, count in places if kind in refs and count]
        if not parts:
            raise undeclared(f"parameter gradients ({kind})")
        # Both statistics are sums over samples.
        return {name: sum(part[name] for part in parts).to(self._device) for name in parts[0]}
