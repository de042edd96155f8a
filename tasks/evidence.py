"""What methods ask for, in the store: references that travel between tasks, and evidence that is read when asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bico.calibration.budget import NOTHING, Budget
from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.signals import SignalKey
from bico.linalg.procrustes import Completion
from bico.methods.evidence import undeclared
from storage.keys import Ref
from tasks.artefacts import read_parameter_gradients
from tasks.cached_stage import Workspace
from tasks.maps import SignalMaps, StoredMaps

Gradients = Mapping[ParameterGradient, Ref]


@dataclass(frozen=True)
class EvidenceRefs:
    """Where the evidence of one method with one budget lies."""

    budget: Budget = NOTHING
    """Nothing without calibration."""
    maps: Sequence[SignalMaps] = ()
    gradients: Gradients = field(default_factory=dict)
    """Of labelled samples."""
    pseudo_labelled_gradients: Gradients = field(default_factory=dict)
    """Of inputs without labels."""

    @property
    def identity(self) -> dict[str, object]:
        """What determines the evidence: for keys. Without unlabelled inputs it does not mention them."""
        found: dict[str, object] = {
            "maps": sorted(part.key for part in self.maps),
            "gradients": {str(kind): ref for kind, ref in self.gradients.items()},
            "count": self.budget.asked,
            "samples": self.budget.size or 0,
        }
        if self.budget.unlabelled:
            theirs = {str(kind): ref for kind, ref in self.pseudo_labelled_gradients.items()}
            found |= {"unlabelled": self.budget.unlabelled, "pseudo_labelled_gradients": theirs}
        return found


class StoredEvidence:
    """Evidence in the store, read when a method asks for it."""

    def __init__(self, space: Workspace, refs: EvidenceRefs) -> None:
        self.samples = refs.budget.samples
        self._maps = StoredMaps(space, refs.maps, refs.budget)
        self._refs, self._device = refs, space.device

    def map(self, key: SignalKey, completion: Completion) -> Tensor:
        return self._maps(key, completion).to(self._device)

    def gradient(self, kind: ParameterGradient) -> Mapping[str, Tensor]:
        budget = self._refs.budget
        places = [
            (self._refs.gradients, budget.asked),
            (self._refs.pseudo_labelled_gradients, budget.unlabelled),
        ]
        parts = [read_parameter_gradients(refs[kind], count) for refs, count in places if kind in refs and count]
        if not parts:
            raise undeclared(f"parameter gradients ({kind})")
        # Both statistics are sums over samples.
        return {
            name: sum((part[name] for part in parts), torch.zeros_like(first)).to(self._device)
            for name, first in parts[0].items()
        }
