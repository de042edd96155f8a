"""A new classifier on what the projection reads: the expert's scores, or the labels, by regression."""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bico.errors import CalibrationError, ConfigError
from bico.evaluation.linear_head import LinearHead
from bico.evaluation.predictions import predicted
from bico.last_steps.protocol import StepContext, StepResult
from bico.linalg.logistic import logistic
from bico.linalg.ridge import PENALTIES, ridge
from bico.methods.evidence import Evidence, Needs
from bico.models.protocol import Model
from bico.task_vector import StateDict


class Targets(StrEnum):
    """What a head learns to give."""

    EXPERT = "expert"
    """The expert's scores, centred over the classes (its predictions, for a logistic fit); every sample serves."""
    LABELS = "labels"
    """The labels: what can be had without any expert."""


class Fit(StrEnum):
    RIDGE = "ridge"
    """In closed form, penalty by leave-one-out."""
    LOGISTIC = "logistic"
    """By L-BFGS, penalty by cross-validation."""


@dataclass(frozen=True)
class Head:
    """Learns a linear classifier on the pooled inputs of the (updated) target; it is bound to the task's classes.

    Without transport (`none+head`) it is the probe that a transfer has to beat.
    """

    targets: Targets = Targets.EXPERT
    fit: Fit = Fit.RIDGE
    penalty: float = 0.0
    """Of the ridge, as a multiple of the mean diagonal; 0 chooses it by leave-one-out."""

    name: ClassVar[str] = "head"
    keeps_vocabulary: ClassVar[bool] = False
    told: ClassVar[frozenset[str]] = frozenset({"targets", "fit"})

    def __post_init__(self) -> None:
        if not self.penalty >= 0:
            raise ConfigError(f"head: penalty={self.penalty} must be >= 0; 0 chooses it.")
        if self.penalty and Fit(self.fit) is Fit.LOGISTIC:
            raise ConfigError("head: penalty is the ridge's; a logistic fit chooses its own by cross-validation.")

    @property
    def label(self) -> str:
        kind = "logistic head" if Fit(self.fit) is Fit.LOGISTIC else "head"
        return f"{kind} of labels" if self.needs_labels else kind

    @property
    def needs_labels(self) -> bool:
        return Targets(self.targets) is Targets.LABELS

    @property
    def trained(self) -> str:
        to = "the labels" if self.needs_labels else "the expert's scores"
        if Fit(self.fit) is Fit.LOGISTIC:
            to = "the labels" if self.needs_labels else "the expert's predictions"
            return f"a linear classifier on its pooled features was fitted to {to} by logistic regression"
        return f"a linear classifier on its pooled features was fitted to {to} by ridge regression"

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, source: Model, target: Model) -> None:
        """Any target can be given a classifier."""

    def take(self, vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
        pooled = context.target_after(vector).pooled
        classes = context.scores.shape[1]
        if self.needs_labels:
            if not context.samples.labelled:
                raise CalibrationError(
                    "head:targets=labels needs labelled samples, and there are none: raise --samples."
                )
            labels = context.labels.to(pooled.device)
            pooled = pooled[: len(labels)]
            wanted = F.one_hot(labels, classes).to(pooled)
        else:
            labels, wanted = predicted(context.scores, "the expert"), context.scores
        return StepResult(vector, self.linear_head(pooled, labels.to(pooled.device), wanted.to(pooled), classes))

    def linear_head(self, pooled: Tensor, labels: Tensor, wanted: Tensor, classes: int) -> LinearHead:
        """The classifier, from pooled inputs (samples, pooled) to labels (samples,) or wanted scores (samples, classes)."""
        if Fit(self.fit) is Fit.LOGISTIC:
            return LinearHead(*logistic(pooled, labels, classes))
        centred = wanted - wanted.mean(1, keepdim=True)  # what is added to all classes alike decides nothing
        found = ridge(pooled, centred, [self.penalty] if self.penalty else PENALTIES, intercept=True)
        return LinearHead(found.weight, found.bias)
