"""A cell of the study at work: one pair, task, expert and draw of calibration inputs, and every recipe measured on it.

Calibration inputs come from training samples that no expert has seen. Features of a model are read once, and all
recipes that share a trunk (the model up to its last projection) share its passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from benchmarks.beyond.ideas import DEPTH_IDEAS, IDEAS
from benchmarks.beyond.setting import Data, Draw
from benchmarks.beyond.sides import Expert, Side, batches
from bico.calibration.covariances import Batch, Covariances, cross_covariances
from bico.calibration.parameter_gradients import ParameterGradient, parameter_gradients
from bico.calibration.pseudo_labels import PseudoLabels, pseudo_labels
from bico.calibration.signals import Signal
from bico.evaluation.linear_head import Readings, read
from bico.finetune import MINI
from bico.last_steps import Samples, StepContext, StepResult
from bico.methods import Gathered, Pair
from bico.methods.spec import NONE, Part, Spec
from bico.methods.variant import finish, get_variant
from bico.reporting.predicted_gain import predicted_gain
from bico.task_vector import StateDict

SIGNALS = (Signal.INPUT, Signal.OUTPUT, Signal.OUTPUT_GRAD)
PROJECTION = "visual.proj"
Made = TypeVar("Made")


@dataclass(frozen=True)
class TrunkContext(StepContext):
    """A context whose target has one trunk: what its projection reads is known, features follow from the projection."""

    pooled: Tensor | None = None
    """What the target's projection reads."""
    of_expert: Tensor | None = None
    """The expert's scores."""

    @property
    def scores(self) -> Tensor:
        return self.of_expert

    def target_after(self, vector: StateDict) -> Readings:
        return Readings(self.pooled, self.pooled @ projection_after(self.target.state(), vector))


class StudyCell:
    """All recipes of one cell; their parts are made once, when first asked for."""

    def __init__(self, expert: Expert, target: Side, draw: Draw) -> None:
        self.expert, self.source, self.target, self.draw = expert, expert.side, target, draw
        self.models, self.heads = (self.source.model, target.model), (self.source.head, target.head)
        self.pair = Pair.of(*self.models)
        labels = self.source.train.split.labels[self.source.pool]
        self.labelled = self._batches(draw.labelled, labels)
        self.unlabelled, self.softly = (
            self._batches(draw.unlabelled, pseudo_labels(expert.scores, kind))
            for kind in (PseudoLabels.HARD, PseudoLabels.SOFT)
        )
        self._made: dict[tuple, Any] = {}

    def measure(self, method: Spec, data: Data) -> float:
        """Accuracy of a recipe in %."""
        trunk, _ = split(method)
        outcome = self.outcome(method, data)
        pooled = self.on_test(trunk, data).pooled
        if outcome.linear_head is not None:
            return self.target.percent(outcome.linear_head.scores(pooled))
        return self.target.zero_shot(pooled @ projection_after(self.target.model.state(), outcome.vector))

    def predicted(self, method: Spec, data: Data) -> float:
        """The first-order gain of a recipe without last steps, nats."""
        sites, count = self.target.model.sites, len(self.draw.labelled)
        return sum(predicted_gain(self.gradient(), self.vector(method, data), sites, count).values())

    def outcome(self, method: Spec, data: Data) -> StepResult:
        """What the target gets."""
        trunk, last = split(method)
        vector = self.vector(trunk, data)
        if last is None:
            return StepResult(vector)
        variant = get_variant(last)
        evidence = self.evidence(data) if variant.needs else Gathered()
        return finish(variant.steps, vector, self._context(trunk, data), evidence)

    def vector(self, trunk: Spec, data: Data) -> StateDict:
        """The target's task vector before any last step that leaves the trunk alone."""
        return self._once(("vector", trunk, data), lambda: self._carry(trunk, data))

    def on_test(self, trunk: Spec, data: Data) -> Readings:
        def make() -> Readings:
            vector = self.vector(trunk, data)
            return self.target.on_test(vector) if vector else self.target.test_before

        return self._once(("test", trunk, data), make)

    def collect(self, data: Data) -> Covariances:
        """Cross-covariances of the models as they are now."""
        unlabelled = self.softly if data is Data.SOFT else self.unlabelled
        calibration = [*(self.labelled if data.has_labelled else []), *(unlabelled if data.has_unlabelled else [])]
        count = sum(len(batch.labels) for batch in calibration)
        ((_, sums),) = cross_covariances(*self.models, calibration, self.heads, SIGNALS, [count])
        return sums

    def sums(self, data: Data) -> Covariances:
        """Cross-covariances of the pre-trained models."""

        def make() -> Covariances:
            if data is not Data.MIXED:
                return self.collect(data)
            parts = [Data.LABELLED] * bool(self.labelled) + [Data.UNLABELLED] * bool(self.unlabelled)
            return added(*map(self.sums, parts))

        return self._once(("sums", data), make)

    def gradient(self) -> StateDict:
        """Of the target's loss, summed over the labelled samples."""

        def make() -> StateDict:
            theirs = ((batch.target, batch.labels) for batch in self.labelled)
            count = len(self.draw.labelled)
            ((_, found),) = parameter_gradients(
                self.target.model, theirs, self.target.head, [ParameterGradient.SUM], [count]
            )
            return found[ParameterGradient.SUM]

        return self._once(("gradient",), make)

    def evidence(self, data: Data, gradient: bool = False) -> Gathered:
        """What a method may ask for."""

        def make() -> Gathered:
            gradients = {ParameterGradient.SUM: self.gradient()} if gradient else {}
            return Gathered(len(self.draw.labelled), self.sums(data), gradients)

        return self._once(("evidence", data, gradient), make)

    def _carry(self, trunk: Spec, data: Data) -> StateDict:
        if trunk.steps:
            context = StepContext(*self.models, self.heads, self.expert.tau, self._samples(data))
            tuning = get_variant(without_transport(trunk.steps), lr=MINI.lr).steps
            return finish(tuning, self.vector(Spec(trunk.first), data), context, Gathered()).vector
        if not trunk.carries:
            return {}
        if idea := (IDEAS | DEPTH_IDEAS).get(trunk.name):
            return idea(self, data)
        method = get_variant(trunk, lr=MINI.lr).method
        return method.transport(self.expert.tau, self.pair, self.evidence(data, bool(method.needs.gradients)))

    def _pooled(self, trunk: Spec, data: Data) -> Tensor:
        """What the trunk's projection reads of the cell's samples, labelled first."""

        def make() -> Tensor:
            places = self.draw.places(data)
            vector = self.vector(trunk, data)
            if not vector:
                return self.target.pool_before.pooled[places]
            with self.target.model.updated(vector):
                return read(self.target.model, self.target.inputs(self.target.pool[places])).pooled

        return self._once(("pooled", trunk, data), make)

    def _context(self, trunk: Spec, data: Data) -> StepContext:
        places = self.draw.places(data)
        known = {
            "source": chosen(self.source.pool_before, places),
            "expert": chosen(self.expert.after, places),
            "target": chosen(self.target.pool_before, places),
        }
        about = *self.models, self.heads, self.expert.tau, self._samples(data), known
        return TrunkContext(*about, self._pooled(trunk, data), self.expert.scores[places])

    def _samples(self, data: Data) -> Samples:
        return Samples(self.labelled if data.has_labelled else [], self.unlabelled if data.has_unlabelled else [])

    def _batches(self, places: Tensor, targets: Tensor) -> list[Batch]:
        """Of places in the pool, with targets of the loss for all of the pool."""
        return batches(self.source, self.target, self.source.pool[places], targets[places])

    def _once(self, key: tuple, make: Callable[[], Made]) -> Made:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def split(method: Spec) -> tuple[Spec, Spec | None]:
    """The part of a recipe that makes a trunk, and the last steps on it, if there are any, without transport.

    Example:
        >>> [str(part) for part in split(Spec.parse("bico+tune:steps=30+projection"))]
        ['bico+tune:steps=30', 'none+projection']
    """
    tuned = 1 if method.steps and method.steps[0].name == "tune" else 0
    rest = method.steps[tuned:]
    return Spec(method.first, method.steps[:tuned]), without_transport(rest) if rest else None


def without_transport(steps: tuple[Part, ...]) -> Spec:
    return Spec(Part(NONE), steps)


def added(*sums: Covariances) -> Covariances:
    """Covariances add up over samples."""
    return {key: sum(part[key] for part in sums[1:]) + sums[0][key] for key in sums[-1]}


def chosen(readings: Readings, places: Tensor) -> Readings:
    return Readings(readings.pooled[places], readings.features[places])


def projection_after(state: StateDict, vector: StateDict) -> Tensor:
    """The last projection with a task vector."""
    return state[PROJECTION] + vector[PROJECTION] if PROJECTION in vector else state[PROJECTION]
