"""What methods ask for, in the store: references that travel between tasks, and evidence that is read when asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from bico.calibration.budget import NOTHING, Budget
from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.scales import Scale, Scales, Side
from bico.calibration.signals import SignalKey
from bico.linalg.procrustes import AlignmentMap, MapRule
from bico.methods.evidence import undeclared
from storage.keys import Ref
from tasks.artefacts import read_parameter_gradients, read_scales
from tasks.cached_stage import Workspace
from tasks.maps import SignalMaps, StoredMaps

Gradients = Mapping[ParameterGradient, Ref]
K = TypeVar("K")


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
    scales: Mapping[Side, Ref] = field(default_factory=dict)
    """Of what the sites of both models read and give, on labelled samples."""
    pseudo_labelled_scales: Mapping[Side, Ref] = field(default_factory=dict)

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
        if self.scales or self.pseudo_labelled_scales:
            both = {"labelled": self.scales, "pseudo_labelled": self.pseudo_labelled_scales}
            found["scales"] = {kind: {str(side): ref for side, ref in refs.items()} for kind, refs in both.items()}
        return found


class StoredEvidence:
    """Evidence in the store, read when a method asks for it."""

    def __init__(self, space: Workspace, refs: EvidenceRefs) -> None:
        self.samples = refs.budget.samples
        self._maps = StoredMaps(space, refs.maps, refs.budget)
        self._refs, self._device = refs, space.device
        self._scales: dict[tuple[Ref, int], Scales] = {}

    def map(self, key: SignalKey, rule: MapRule) -> AlignmentMap:
        return self._maps(key, rule).to(self._device)

    def gradient(self, kind: ParameterGradient) -> Mapping[str, Tensor]:
        places = self._places(self._refs.gradients, self._refs.pseudo_labelled_gradients, kind)
        parts = [read_parameter_gradients(ref, count) for ref, count in places]
        if not parts:
            raise undeclared(f"parameter gradients ({kind})")
        # Both statistics are sums over samples.
        return {
            name: sum((part[name] for part in parts), torch.zeros_like(first)).to(self._device)
            for name, first in parts[0].items()
        }

    def scale(self, side: Side, key: SignalKey) -> Scale:
        places = self._places(self._refs.scales, self._refs.pseudo_labelled_scales, side)
        for place in places:
            if place not in self._scales:
                self._scales[place] = read_scales(*place)
        parts = [self._scales[place] for place in places]
        if not parts or any(key not in part for part in parts):
            raise undeclared(f"scale of the {key[1]} of {key[0]} in the {side}")
        return reduce(Scale.plus, (part[key] for part in parts))

    def _places(self, labelled: Mapping[K, Ref], pseudo_labelled: Mapping[K, Ref], what: K) -> list[tuple[Ref, int]]:
        """Where one kind of evidence lies, and at which count: of the labelled samples and of those without labels."""
        budget = self._refs.budget
        found = [(labelled, budget.asked), (pseudo_labelled, budget.unlabelled)]
        return [(refs[what], count) for refs, count in found if what in refs and count]
