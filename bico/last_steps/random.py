"""The control of everything that is chosen on labels: chance in the place of what was carried, as long as that was."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from bico.last_steps.protocol import StepContext, StepResult
from bico.methods.evidence import Evidence, Needs
from bico.models.protocol import Model
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Random:
    """Puts a Gaussian tensor of the same norm in the place of each of the task vector's.

    A search of the strength can gain by itself, whatever it goes along: `bico+random+search` says how much, where
    `none+search` shows the target as it is.
    """

    seed: int = 0
    """Of the draw; it does not follow the calibration's, so that rows over calibration draws differ in nothing else."""

    name: ClassVar[str] = "random"
    label: ClassVar[str] = "random of the same norms"
    keeps_vocabulary: ClassVar[bool] = True
    told: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = False
    trained: ClassVar[str] = "what was carried over was replaced by random numbers of the same norms"

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, source: Model, target: Model) -> None:
        """Any target has norms."""

    def take(self, vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = {}
        for name in sorted(vector):  # so that the draw does not depend on who made the vector
            tensor = vector[name]
            noise = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
            size = tensor.double().norm().cpu() / noise.norm().clamp_min(torch.finfo(noise.dtype).tiny)
            drawn[name] = (size * noise).to(tensor)
        return StepResult({name: drawn[name] for name in vector})
