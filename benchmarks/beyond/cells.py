"""A cell of the study: one pair, task, expert and draw of calibration inputs, and every recipe measured on it.

Calibration inputs come from training samples that no expert has seen. Features of a model are read once, and all
recipes that share a trunk (the model up to its last projection) share its passes.
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.beyond.ideas import DEPTH_IDEAS, IDEAS
from benchmarks.beyond.setting import Expert, Side, batches
from bico.calibration.covariances import Covariances, cross_covariances
from bico.calibration.parameter_gradients import ParameterGradient, parameter_gradients
from bico.calibration.pseudo_labels import PseudoLabels
from bico.calibration.signals import Signal
from bico.evaluation.linear_head import Readings, read
from bico.finetune import MINI
from bico.last_steps import Samples, StepContext, StepResult
from bico.methods import Gathered, Pair, get_method
from bico.methods.variant import NONE, finish, get_variant
from bico.reporting.predicted_gain import predicted_gain
from bico.task_vector import StateDict

SIGNALS = (Signal.INPUT, Signal.OUTPUT, Signal.OUTPUT_GRAD)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Place:
    """Which cell."""

    source: str
    target: str
    task: str
    strength: int
    """Fine-tuning steps of the expert."""
    expert: int
    """Seed of its fine-tuning."""
    seed: int
    """Of the calibration draw."""
    labels: int
    """Samples drawn with labels."""
    unlabelled: int
    """Inputs drawn without."""


@dataclass(frozen=True)
class Line:
    """One measured recipe."""

    place: Place
    method: str
    samples: int
    """Labelled samples that it looked at."""
    pseudo_labelled: int
    """Inputs without labels that it looked at."""
    accuracy: float
    predicted: float | None = None
    """First-order gain on the labelled samples, nats (`bico.reporting.predicted_gain`)."""

    def record(self) -> dict[str, Any]:
        own = asdict(self)
        return own.pop("place") | own | {"accuracy": round(self.accuracy, 3)}


@dataclass(frozen=True)
class Draw:
    """What a cell calibrates with: places in the pool, labelled ones first."""

    labelled: Tensor
    unlabelled: Tensor

    @classmethod
    def of(cls, pool: int, labels: int, unlabelled: int, seed: int) -> "Draw":
        """Larger draws hold the smaller ones: labelled places come from the front of an order, others from its end."""
        order = torch.randperm(pool, generator=torch.Generator().manual_seed(seed))
        return cls(order[:labels], order[max(labels, pool - unlabelled) :].flip(0))

    @property
    def all(self) -> Tensor:
        return torch.cat([self.labelled, self.unlabelled])


def added(*sums: Covariances) -> Covariances:
    """Covariances add up over samples."""
    return {key: sum(part[key] for part in sums[1:]) + sums[0][key] for key in sums[-1]}


@dataclass(frozen=True)
class TrunkScene(StepContext):
    """A context whose target has one trunk: what its projection reads is known, features follow from the projection."""

    pooled: Tensor | None = None
    expert: Tensor | None = None
    """The expert's scores."""

    @property
    def scores(self) -> Tensor:
        return self.expert

    def target_after(self, vector: StateDict) -> Readings:
        weight = self.target.state()["visual.proj"]
        weight = weight + vector["visual.proj"] if "visual.proj" in vector else weight
        return Readings(self.pooled, self.pooled @ weight)


def chosen(readings: Readings, places: Tensor) -> Readings:
    return Readings(readings.pooled[places], readings.features[places])


class Cell:
    """All recipes of one cell; their parts are made once, when first asked for."""

    def __init__(self, expert: Expert, target: Side, draw: Draw) -> None:
        self.expert, self.source, self.target, self.draw = expert, expert.side, target, draw
        self.pair = Pair.of(self.source.model, target.model)
        self.heads = (self.source.head, target.head)
        pool = self.source.pool
        labels = self.source.train.split.labels[pool]
        self.labelled = batches(self.source, target, pool[draw.labelled], labels[draw.labelled])
        self.unlabelled, self.softly = (
            batches(
                self.source, target, pool[draw.unlabelled], pseudo_labels(expert.scores, pseudo_labels)[draw.unlabelled]
            )
            for pseudo_labels in (PseudoLabels.HARD, PseudoLabels.SOFT)
        )
        self._made: dict[tuple, Any] = {}

    def _once(self, key: tuple, make: Callable[[], Made]) -> Made:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def collect(self, data: str) -> Covariances:
        """Cross-covariances of the models as they are now, from the samples that `data` names: labels, pseudo_labels (without
        labels), mixed, or soft (mixed, with the expert's probabilities).
        """
        calibration = {
            "labels": self.labelled,
            "pseudo_labels": self.unlabelled,
            "mixed": [*self.labelled, *self.unlabelled],
            "soft": [*self.labelled, *self.softly],
        }[data]
        models = (self.source.model, self.target.model)
        count = sum(len(batch.labels) for batch in calibration)
        ((_, sums),) = cross_covariances(*models, calibration, self.heads, SIGNALS, [count])
        return sums

    def sums(self, data: str) -> Covariances:
        """Cross-covariances of the pre-trained models."""
        if data == "mixed":
            parts = ["labels"] * bool(self.labelled) + ["pseudo_labels"] * bool(self.unlabelled)
            return self._once(("sums", data), lambda: added(*map(self.sums, parts)))
        return self._once(("sums", data), lambda: self.collect(data))

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

    def evidence(self, data: str, gradient: bool = False) -> Gathered:
        """What a method may ask for."""
        gradients = {ParameterGradient.SUM: self.gradient()} if gradient else {}
        make = lambda: Gathered(len(self.draw.labelled), self.sums(data), gradients)  # noqa: E731
        return self._once(("evidence", data, gradient), make)

    def vector(self, trunk: str, data: str) -> StateDict:
        """The target's task vector before any last step that leaves the trunk alone."""
        return self._once(("vector", trunk, data), lambda: self._carry(trunk, data))

    def _carry(self, trunk: str, data: str) -> StateDict:
        front, _, tune = trunk.partition("+")
        if tune:
            before = self.vector(front, data)
            samples = Samples(self.labelled, self.unlabelled if data == "mixed" else [])
            context = StepContext(self.source.model, self.target.model, self.heads, self.expert.tau, samples)
            return finish(get_variant(f"{NONE}+{tune}", lr=MINI.lr).steps, before, context, Gathered()).vector
        if trunk == NONE:
            return {}
        if idea := (IDEAS | DEPTH_IDEAS).get(trunk):
            return idea(self, data)
        method = get_method(trunk, lr=MINI.lr)
        return method.transport(self.expert.tau, self.pair, self.evidence(data, bool(method.needs.gradients)))

    def on_test(self, trunk: str, data: str) -> Readings:
        def make() -> Readings:
            vector = self.vector(trunk, data)
            return self.target.on_test(vector) if vector else self.target.test_before

        return self._once(("test", trunk, data), make)

    def pooled(self, trunk: str, data: str) -> Tensor:
        """What the trunk's projection reads of the cell's samples, labelled first."""

        def make() -> Tensor:
            places = self._places(data)
            if trunk == NONE:
                return self.target.pool_before.pooled[places]
            with self.target.model.updated(self.vector(trunk, data)):
                return read(self.target.model, self.target.inputs(self.target.pool[places])).pooled

        return self._once(("pooled", trunk, data), make)

    def context(self, trunk: str, data: str) -> StepContext:
        places = self._places(data)
        known = {
            "source": chosen(self.source.pool_before, places),
            "expert": chosen(self.expert.after, places),
            "target": chosen(self.target.pool_before, places),
        }
        samples = Samples(self.labelled, self.unlabelled if data == "mixed" else [])
        models = (self.source.model, self.target.model)
        scores = self.expert.scores[places]
        return TrunkScene(*models, self.heads, self.expert.tau, samples, known, self.pooled(trunk, data), scores)

    def _places(self, data: str) -> Tensor:
        return self.draw.all if data == "mixed" else self.draw.labelled

    def outcome(self, method: str, data: str) -> StepResult:
        trunk, steps = split(method)
        vector = self.vector(trunk, data)
        if not steps:
            return StepResult(vector)
        variant = get_variant(f"{NONE}+{steps}")
        return finish(
            variant.steps, vector, self.context(trunk, data), self.evidence(data) if variant.needs else Gathered()
        )

    def measure(self, method: str, data: str) -> float:
        """Accuracy of a recipe in %, from the samples that `data` names: labels, pseudo_labels (unlabelled), or mixed."""
        trunk, _ = split(method)
        outcome = self.outcome(method, data)
        pooled = self.on_test(trunk, data).pooled
        if outcome.linear_head is not None:
            return self.target.percent(outcome.linear_head.scores(pooled))
        weight = self.target.model.state()["visual.proj"]
        moved = outcome.vector.get("visual.proj", torch.zeros_like(weight))
        return self.target.zero_shot(pooled @ (weight + moved))

    def predicted(self, method: str, data: str) -> float:
        sites, count = self.target.model.sites, len(self.draw.labelled)
        return sum(predicted_gain(self.gradient(), self.vector(method, data), sites, count).values())


def split(method: str) -> tuple[str, str]:
    """The part of a recipe that makes a trunk, and the last steps on it.

    Example:
        >>> split("bico+tune:steps=30+projection"), split("none+head")
        (('bico+tune:steps=30', 'projection'), ('none', 'head'))
    """
    first, *rest = method.split("+")
    if rest and rest[0].startswith("tune"):
        return f"{first}+{rest[0]}", "+".join(rest[1:])
    return first, "+".join(rest)


REFERENCES = ("zero-shot", "fine-tuned", "expert")
PREDICTED = ("bico", "theseus")


def lines_of(cell: Cell, place: Place, recipes: Sequence[tuple[str, str]]) -> Iterator[Line]:
    """Measures recipes, pairs of (method, data), in a cell, after its references."""
    source, target, expert = cell.source, cell.target, cell.expert
    yield Line(place, "zero-shot", 0, 0, target.zero_shot(target.test_before.features))
    oracle = target.fine_tuned(0, expert.folder)
    yield Line(place, "fine-tuned", 0, 0, _reference(target, oracle, (0, MINI.steps)))
    yield Line(place, "expert", 0, 0, _reference(source, expert.tau, (expert.seed, expert.steps)))
    for method, data in recipes:
        samples, pseudo_labelled = (
            (0 if data == "pseudo_labels" else place.labels),
            (0 if data == "labels" else place.unlabelled),
        )
        predicted = cell.predicted(method, data) if method in PREDICTED else None
        yield Line(place, method, samples, pseudo_labelled, cell.measure(method, data), predicted)


_REFERENCES: dict[tuple, float] = {}


def _reference(side: Side, vector: StateDict, which: tuple[int, int]) -> float:
    """Accuracy of a fine-tuned model, measured once per process."""
    key = (side.ref, side.task.name, *which)
    if key not in _REFERENCES:
        _REFERENCES[key] = side.zero_shot(side.on_test(vector).features)
    return _REFERENCES[key]


def append(path: Path, lines: list[Line]) -> None:
    """Writes a cell's lines in one piece, so that a stop leaves whole cells."""
    fresh, records = not path.is_file(), [line.record() for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(records)
        file.flush()
        os.fsync(file.fileno())
