"""The one protocol of all last steps: from a model that a task vector has reached to a better one, on the same samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bico.calibration.covariances import Batch
from bico.calibration.pseudo_labels import expert_scores
from bico.evaluation.linear_head import LinearHead, Readings, read
from bico.last_steps.curve import StrengthCurve
from bico.methods.evidence import Evidence, Needs
from bico.methods.settings import HasFields
from bico.models.protocol import Model
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Samples:
    """The calibration samples, with labels and without."""

    labelled: Sequence[Batch] = ()
    unlabelled: Sequence[Batch] = ()
    """Their targets are the expert's predictions (`bico.calibration.pseudo_labels`)."""

    @property
    def batches(self) -> list[Batch]:
        return [*self.labelled, *self.unlabelled]


@dataclass(frozen=True)
class StepContext:
    """Everything that a last step may look at. What several steps read of the models is read once."""

    source: Model
    target: Model
    heads: tuple[Tensor, Tensor]
    """Classification heads of source and target."""
    tau: Mapping[str, Tensor]
    """The source's task vector."""
    samples: Samples
    known: dict[str, Readings] = field(default_factory=dict, repr=False, compare=False)
    """What has been read of "source", "expert" and "target" so far."""

    def source_before(self) -> Readings:
        return self._once("source", {})

    def source_after(self) -> Readings:
        """Of the expert."""
        return self._once("expert", self.tau)

    def target_before(self) -> Readings:
        return self._once("target", {})

    def target_after(self, vector: Mapping[str, Tensor]) -> Readings:
        """Of the target with a task vector."""
        return self._read("target", vector) if vector else self.target_before()

    @cached_property
    def scores(self) -> Float[Tensor, "samples classes"]:
        """The expert's class scores."""
        return expert_scores(self.source, self.tau, self._inputs("source"), self.heads[0])

    @property
    def labels(self) -> Int[Tensor, " labelled"]:
        """Class indices of the labelled samples."""
        return torch.cat([batch.labels for batch in self.samples.labelled])

    def _inputs(self, side: str) -> list[Tensor]:
        return [getattr(batch, side) for batch in self.samples.batches]

    def _read(self, side: str, vector: Mapping[str, Tensor]) -> Readings:
        model = getattr(self, side)
        with model.updated(vector):
            return read(model, self._inputs(side))

    def _once(self, name: str, vector: Mapping[str, Tensor]) -> Readings:
        if name not in self.known:
            self.known[name] = self._read("target" if name == "target" else "source", vector)
        return self.known[name]


@dataclass(frozen=True)
class StepResult:
    """What the target gets."""

    vector: StateDict
    """Its task vector; parameters that it does not name stay as they are."""
    linear_head: LinearHead | None = None
    """A classifier that takes the place of projection and head."""
    curve: StrengthCurve | None = None
    """What a search of the strength saw."""


@runtime_checkable  # beartype checks it in the tests
class LastStep(HasFields, Protocol):
    """A last step. A frozen dataclass without state; its fields are its settings."""

    name: ClassVar[str]
    keeps_vocabulary: ClassVar[bool]
    """Whether what comes out still knows other classes than the task's; a step that does not is the end."""

    @property
    def needs_labels(self) -> bool:
        """Whether it learns from labelled samples only."""
        ...

    @property
    def label(self) -> str:
        """How tables call it."""
        ...

    @property
    def trained(self) -> str:
        """What of the target it has trained or fitted, for a model card: the subject and verb of a sentence."""
        ...

    told: ClassVar[frozenset[str]]
    """Settings that the label tells; others are written behind it."""

    @property
    def needs(self) -> Needs:
        """The evidence it asks for, beside the samples."""
        ...

    def check(self, source: Model, target: Model) -> None:
        """Raises MethodError, with what to use instead, if the step cannot serve this pair."""
        ...

    def take(self, vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
        """Returns what the target gets in place of the task vector.

        Arguments:
            vector: The target's task vector so far, at full strength; empty without transport.
            context: Both models, at their pre-trained weights, and the samples.
            evidence: What `needs` names.

        Raises:
            CalibrationError: If there are too few samples.
        """
        ...
