"""Measures recipes cell by cell: a pair, a task, an expert and a draw of calibration inputs make one cell.

    python -m benchmarks.beyond.cells --out benchmarks/beyond/cells.csv --tasks digits,segments [--data FOLDER ...]
        [--targets zoo:mini-b,zoo:mini-b-plus] [--experts 0,1] [--seeds 0,1,2] [--labels 100] [--unlabelled 500]

Calibration inputs come from training samples that no expert has seen. Cells that the file holds are skipped, so a run
that was stopped goes on where it was. Everything runs in this process: features of a model are read once, and all
recipes that share a trunk (the model up to its last projection) share its passes. `benchmarks.beyond.table` makes
the tables.
"""

import argparse
import csv
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.beyond.setting import Expert, Side, batches, open_side
from bico.calibration import Batch, Covariances, cross_covariances
from bico.chain import finish, get_chain
from bico.finetune import MINI
from bico.methods import Gathered, Pair, get_method
from bico.parameter_gradients import ParameterGradient, parameter_gradients
from bico.predicted_gain import predicted_gain
from bico.readout import Readings, read
from bico.refits import Outcome, Samples, Scene
from bico.signals import Signal
from bico.task_vector import State
from bico.teacher import targets


@dataclass(frozen=True)
class Line:
    """One measured recipe."""

    source: str
    target: str
    task: str
    expert: int
    """Seed of the expert's fine-tuning."""
    seed: int
    """Of the calibration draw."""
    method: str
    samples: int
    unlabelled: int
    accuracy: float
    predicted: float | None = None
    """First-order gain on the labelled samples, nats (`bico.predicted_gain`)."""

    @property
    def cell(self) -> tuple:
        return (self.source, self.target, self.task, str(self.expert), str(self.seed))


@dataclass(frozen=True)
class Draw:
    """What a cell calibrates with: places in the pool, labelled ones first."""

    labelled: Tensor
    unlabelled: Tensor

    @classmethod
    def of(cls, pool: int, labels: int, unlabelled: int, seed: int) -> "Draw":
        order = torch.randperm(pool, generator=torch.Generator().manual_seed(seed))
        return cls(order[:labels], order[labels : labels + unlabelled])

    @property
    def all(self) -> Tensor:
        return torch.cat([self.labelled, self.unlabelled])


def added(*sums: Covariances) -> Covariances:
    """Covariances add up over samples."""
    return {key: sum(part[key] for part in sums[1:]) + sums[0][key] for key in sums[-1]}


@dataclass(frozen=True)
class TrunkScene(Scene):
    """A scene whose target has one trunk: what its projection reads is known, features follow from the projection."""

    pooled: Tensor | None = None

    def target_after(self, vector: State) -> Readings:
        weight = self.target.state()["visual.proj"]
        weight = weight + vector["visual.proj"] if "visual.proj" in vector else weight
        return Readings(self.pooled, self.pooled @ weight)


def chosen(readings: Readings, places: Tensor) -> Readings:
    return Readings(readings.pooled[places], readings.features[places])


class Cell:
    """All recipes of one cell; their parts are made once."""

    def __init__(self, expert: Expert, target: Side, draw: Draw) -> None:
        self.expert, self.source, self.target, self.draw = expert, expert.side, target, draw
        self.pair = Pair.of(self.source.model, target.model)
        self.heads = (self.source.head, target.head)
        pool = self.source.pool
        labels = self.source.train.split.labels[pool]
        self.labelled = batches(self.source, target, pool[draw.labelled], labels[draw.labelled])
        taught = targets(expert.scores)
        self.unlabelled = batches(self.source, target, pool[draw.unlabelled], taught[draw.unlabelled])
        everything = [Signal.INPUT, Signal.OUTPUT, Signal.OUTPUT_GRAD]
        self.sums = {"labels": self._collect(self.labelled, everything)}
        if self.unlabelled:
            self.sums["teacher"] = self._collect(self.unlabelled, [Signal.INPUT, Signal.OUTPUT_GRAD])
            self.sums["mixed"] = added(self.sums["labels"], self.sums["teacher"])
        theirs = ((batch.target, batch.labels) for batch in self.labelled)
        ((_, gradients),) = parameter_gradients(
            target.model, theirs, target.head, [ParameterGradient.SUM], [len(draw.labelled)]
        )
        self.gradient = gradients[ParameterGradient.SUM]
        self._evidence = {
            name: Gathered(len(draw.labelled), sums, {ParameterGradient.SUM: self.gradient})
            for name, sums in self.sums.items()
        }

    def _collect(self, calibration: list[Batch], signals: list[Signal]) -> Covariances:
        count = sum(len(batch.labels) for batch in calibration)
        models = (self.source.model, self.target.model)
        ((_, sums),) = cross_covariances(*models, calibration, self.heads, signals, [count])
        return sums

    @cache  # noqa: B019 - a cell lives as long as its numbers are wanted
    def vector(self, method: str, data: str) -> State:
        """The target's task vector before any last step."""
        if method == "none":
            return {}
        if method == "none+tune:steps=30":
            chain = get_chain(method, lr=MINI.lr)
            return finish(chain.steps, {}, self.scene(method, data, {}), Gathered()).vector
        carrier = get_method(method, lr=MINI.lr)
        return carrier.transport(self.expert.tau, self.pair, self._evidence[data])

    @cache  # noqa: B019
    def on_test(self, method: str, data: str) -> Readings:
        vector = self.vector(method, data)
        return self.target.on_test(vector) if vector else self.target.test_before

    @cache  # noqa: B019
    def pooled(self, method: str, data: str) -> Tensor:
        """What the trunk's projection reads of the cell's samples, labelled first."""
        places = self._places(data)
        if method == "none":
            return self.target.pool_before.pooled[places]
        with self.target.model.updated(self.vector(method, data)):
            return read(self.target.model, self.target.inputs(self.target.pool[places])).pooled

    def scene(self, method: str, data: str, vector: State) -> Scene:
        places = self._places(data)
        known = {
            "source": chosen(self.source.pool_before, places),
            "expert": chosen(self.expert.after, places),
            "target": chosen(self.target.pool_before, places),
        }
        samples = Samples(self.labelled, self.unlabelled if data == "mixed" else [])
        models = (self.source.model, self.target.model)
        pooled = self.pooled(method, data) if vector or method == "none" else None
        scene = TrunkScene(*models, self.heads, self.expert.tau, samples, known, pooled)
        scene.__dict__["scores"] = self.expert.scores[places]  # a cached property that need not be computed
        return scene

    def _places(self, data: str) -> Tensor:
        return self.draw.all if data == "mixed" else self.draw.labelled

    def measure(self, method: str, data: str) -> float:
        """Accuracy of a recipe, percent, from the samples that `data` names: labels, teacher (unlabelled), or mixed."""
        trunk, _, steps = method.partition("+") if "tune" not in method else (method, "", "")
        vector = self.vector(trunk, data)
        outcome = Outcome(vector)
        if steps:
            outcome = finish(
                get_chain(f"none+{steps}").steps, vector, self.scene(trunk, data, vector), self._evidence[data]
            )
        pooled = self.on_test(trunk, data).pooled
        if outcome.readout is not None:
            return self.target.percent(outcome.readout.scores(pooled))
        weight = self.target.model.state()["visual.proj"]
        moved = outcome.vector.get("visual.proj", torch.zeros_like(weight))
        return self.target.zero_shot(pooled @ (weight + moved))

    def predicted(self, method: str, data: str) -> float:
        gains = predicted_gain(
            self.gradient, self.vector(method, data), self.target.model.sites, len(self.draw.labelled)
        )
        return sum(gains.values())


LABELS = [
    "theseus",
    "bico",
    "bico+projection",
    "none+projection",
    "none+head:targets=labels",
    "none+head:targets=labels:fit=logistic",
    "bico+head:targets=labels",
    "none+head",
    "bico+head",
    "few-shot",
    "none+tune:steps=30",
]
"""Recipes at N labelled samples."""
MIXED = [
    "bico",
    "bico+projection",
    "none+projection",
    "none+head",
    "none+head:fit=logistic",
    "bico+head",
    "bico+head:targets=labels",
]
"""Recipes at N labelled samples and U unlabelled ones."""


def lines_of(cell: Cell, about: Line, cached: Path) -> Iterator[Line]:
    """Measures everything in a cell."""
    labels, unlabelled = len(cell.draw.labelled), len(cell.draw.unlabelled)
    source, target = cell.source, cell.target
    yield replace(about, method="zero-shot", accuracy=target.zero_shot(target.test_before.features))
    fine_tuned = _reference(target, target.fine_tuned(0, cached), 0)
    yield replace(about, method="fine-tuned", accuracy=fine_tuned)
    yield replace(about, method="expert", accuracy=_reference(source, cell.expert.tau, about.expert))
    for method in LABELS:
        predicted = cell.predicted(method, "labels") if method in ("theseus", "bico") else None
        accuracy = cell.measure(method, "labels")
        yield replace(about, method=method, samples=labels, accuracy=accuracy, predicted=predicted)
    if unlabelled:
        yield replace(about, method="bico", unlabelled=unlabelled, accuracy=cell.measure("bico", "teacher"))
        for method in MIXED:
            predicted = cell.predicted(method, "mixed") if method == "bico" else None
            accuracy = cell.measure(method, "mixed")
            yield replace(
                about, method=method, samples=labels, unlabelled=unlabelled, accuracy=accuracy, predicted=predicted
            )


_REFERENCES: dict[tuple[str, str, int], float] = {}


def _reference(side: Side, vector: State, seed: int) -> float:
    """Accuracy of a fine-tuned model, measured once per process."""
    key = (side.ref, side.task.name, seed)
    if key not in _REFERENCES:
        _REFERENCES[key] = side.zero_shot(side.on_test(vector).features)
    return _REFERENCES[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/beyond/cells.csv"))
    parser.add_argument("--experts-in", type=Path, default=Path("out/beyond"), help="where experts are kept")
    parser.add_argument("--source", default="zoo:mini-a")
    parser.add_argument("--targets", default="zoo:mini-b,zoo:mini-b-plus")
    parser.add_argument("--tasks", default="digits,segments")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--experts", default="0,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--unlabelled", type=int, default=500)
    parser.add_argument("--test", type=int, default=500, help="test samples")
    given = parser.parse_args()
    done = read_cells(given.out) if given.out.is_file() else set()
    folders = tuple(given.data)
    for seed in map(int, given.experts.split(",")):
        for task in given.tasks.split(","):
            source = open_side(given.source, task, folders, given.test)
            expert = None
            for ref in given.targets.split(","):
                target = open_side(ref, task, folders, given.test)
                for draw_seed in map(int, given.seeds.split(",")):
                    about = Line(source.name, target.name, task, seed, draw_seed, "", 0, 0, 0.0)
                    if (*about.cell, str(given.labels), str(given.unlabelled)) in done:
                        continue
                    started, used = time.perf_counter(), time.process_time()
                    expert = expert or Expert.of(source, seed, given.experts_in)
                    draw = Draw.of(len(source.pool), given.labels, given.unlabelled, draw_seed)
                    lines = list(lines_of(Cell(expert, target, draw), about, given.experts_in))
                    append(given.out, lines)
                    wall, cpu = time.perf_counter() - started, time.process_time() - used
                    print(f"{'/'.join(about.cell)}: {len(lines)} lines, {wall:.0f} s ({cpu:.0f} s CPU)", flush=True)


def read_cells(path: Path) -> set[tuple]:
    """Cells that a file holds, with their labels and unlabelled inputs."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("source", "target", "task", "expert", "seed", "samples", "unlabelled")
    last = ("bico+head:targets=labels", MIXED[-1])
    return {tuple(row[key] for key in keys) for row in rows if row["method"] in last}


def append(path: Path, lines: list[Line]) -> None:
    """Writes a cell's lines in one piece, so that a stop leaves whole cells."""
    fresh = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(asdict(line) | {"accuracy": round(line.accuracy, 3)} for line in lines)
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
