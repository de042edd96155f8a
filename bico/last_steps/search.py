"""The strength of a transfer by a line search on the labels: forward passes only."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bico.errors import CalibrationError
from bico.evaluation.probe import probe_losses
from bico.last_steps.curve import StrengthCurve
from bico.last_steps.protocol import StepContext, StepResult
from bico.methods.evidence import Evidence, Needs
from bico.models.protocol import Model
from bico.task_vector import StateDict, scale

STRENGTHS = (0.0, 0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0, 5.66, 8.0)
"""Candidates, in steps of √2; 0 is the untouched target."""


@dataclass(frozen=True)
class Search:
    """Multiplies the task vector by the strength that the labelled samples ask for.

    Of each candidate the cross-entropy of every sample is measured: by the task's head, or where models are probed by probes
    that were fitted on the other samples. The strength that the vector came with is left only for what is better by more
    than chance: of all candidates whose mean loss is within `margin` standard errors of the best one's (paired over samples),
    the nearest to 1 is taken. So ten labels do not lead astray, and hundreds decide.
    """

    margin: float = 1.0
    """Standard errors of the paired difference within which a candidate is as good as the best. Where strengths differ by chance
    alone, 1 moves the strength in some three searches of ten, 2 in one of fifteen, 3 in one of a hundred."""

    name: ClassVar[str] = "search"
    label: ClassVar[str] = "strength searched"
    keeps_vocabulary: ClassVar[bool] = True
    told: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = True

    @property
    def trained(self) -> str:
        return "the strength of the transfer was chosen on the labels"

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, source: Model, target: Model) -> None:
        """Any target can be run."""

    def take(self, vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
        if not context.samples.labelled:
            raise CalibrationError("search compares strengths on labels, and there are none: raise --samples.")
        if not vector:
            return StepResult({})
        losses = torch.stack([_losses(context, scale(vector, alpha)) for alpha in STRENGTHS])
        strength = STRENGTHS[choose(losses, STRENGTHS, self.margin)]
        curve = StrengthCurve(STRENGTHS, tuple(losses.mean(1).tolist()), strength)
        return StepResult(scale(vector, strength), curve=curve)


def choose(losses: Float[Tensor, "strengths samples"], strengths: tuple[float, ...], margin: float) -> int:
    """Returns which strength to take.

    Arguments:
        losses: Of every sample at every strength.

    Example:
        >>> choose(torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.4, 0.6], [0.5, 0.5, 0.4]]), (0.0, 1.0, 2.0), margin=1.0)
        1
    """
    best = int(losses.mean(1).argmin())
    worse = losses - losses[best]
    error = worse.std(1) / losses.shape[1] ** 0.5 if losses.shape[1] > 1 else torch.full_like(worse[:, 0], torch.inf)
    good = [n for n in range(len(strengths)) if n == best or worse[n].mean() <= margin * error[n]]
    return min(good, key=lambda n: _far(strengths[n]))


def _far(strength: float) -> float:
    """How far from 1, in factors; no factor leads to nothing."""
    return abs(torch.tensor(strength).log2().item())


@torch.no_grad()
def _losses(context: StepContext, vector: StateDict) -> Float[Tensor, " samples"]:
    target, head = context.target, context.heads[1]
    samples = [cast(Tensor, batch.target) for batch in context.samples.labelled]
    with target.updated(vector):
        if target.probed:
            features = torch.cat([target.features(inputs) for inputs in samples])
            return probe_losses(features, context.labels.cpu(), len(head)).cpu()
        logits = torch.cat([target.logits(inputs, head) for inputs in samples])
        return F.cross_entropy(logits.double(), context.labels.to(logits.device), reduction="none").cpu()
