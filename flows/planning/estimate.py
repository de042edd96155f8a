"""What a run will cost in time, memory and on the disk: from shapes, and from one batch that each model is shown.

Time is operations over speeds. Speeds are measured on the spot: a batch through each model gives the seconds of a sample, and
a product of matrices those of an operation; how many samples each stage takes, and how large what it leaves is, follows from
what it is called with. Passes backward are told from those forward by their operations (`bico.reporting.cost`).
"""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bico.calibration.memory import FLOAT32, MemoryPlan, covariance_shapes, plan_memory, weight_bytes
from bico.last_steps.lora import Lora
from bico.last_steps.search import Search
from bico.last_steps.tune import Tune
from bico.models.loading import ModelFiles
from bico.models.matching import match_sites
from bico.reporting.cost import applying, decomposition
from flows.planning.forecast import Ahead, Step
from flows.planning.plan import Plan
from tasks.collect import STAGES
from tasks.inputs import TaskRef, open_model, open_split

SPLITS = ("train", "test")
PROBE = 16
"""Samples of the batch that is measured."""
START = 8.0
"""Seconds until Prefect's server answers and the libraries are there, where nothing is served (5 to 9 s on two cores)."""
EACH, FOUND = 0.15, 0.05
"""Seconds that a stage takes beside its work, and one that is found."""
ROW = 0.06
"""Seconds that MLflow takes for a cell."""
OVERHEAD = 1.4
"""Of a calibration pass over the bare passes: products of rows, and taking the model apart (docs/speed.md)."""
MAP = 12.0
"""Operations of a decomposition over the paper's estimate of it."""
SMALL = 1500
"""Bytes of an artefact that holds numbers only, its manifest included."""
PAPERS = 110_000
"""Bytes of tables and a plot."""


@dataclass(frozen=True)
class Speed:
    """What was measured on this machine."""

    forward: float
    """Seconds of a sample through a model."""
    prepare: float
    """Seconds until an example of the data is what the model reads."""
    sample: int
    """Bytes of a prepared example."""


@dataclass(frozen=True)
class Estimate:
    """What a run will cost."""

    steps: tuple[tuple[str, float], ...]
    """Seconds of every stage that will be computed, in order, by name."""
    seconds: float
    """Of all of it, the start and the records included."""
    passes: int
    """Samples that go through a model, forward and backward counted once each."""
    memory: int
    """Bytes at the peak, of this process."""
    store: int
    """Bytes that the store will grow by."""
    results: int
    """Bytes that are written for people, with MLflow's copy."""


def estimate(plan: Plan, ahead: Ahead, exports: int) -> Estimate:
    """Shows each model a batch, and adds up.

    Arguments:
        exports: How many models will be written.
    """
    known = _Known(plan)
    steps = tuple((step.stage, known.seconds(step) + EACH) for step in ahead.steps)
    written = exports * (weight_bytes(known.target) + known.state_bytes(plan.target))
    found = ahead.totals["cached"]
    fixed = START + FOUND * found + ROW * ahead.rows + 2 * written / 2e8
    return Estimate(
        steps,
        fixed + sum(seconds for _, seconds in steps),
        sum(known.samples(step) for step in ahead.steps),
        known.memory(ahead),
        sum(known.bytes(step) for step in ahead.steps),
        2 * (PAPERS + written),
    )


class _Known:
    """Shapes and speeds of a plan, and what they make of each stage."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.source, self.target = (open_model(files, plan.space.device) for files in (plan.source, plan.target))
        self._speeds: dict[ModelFiles, Speed] = {}

    def speed(self, files: ModelFiles) -> Speed:
        if files not in self._speeds:
            self._speeds[files] = measure(self.plan, files, next(iter(self.plan.tasks.values())))
        return self._speeds[files]

    def state_bytes(self, files: ModelFiles) -> int:
        return FLOAT32 * sum(tensor.numel() for tensor in open_model(files, self.plan.space.device).state().values())

    @cached_property
    def rate(self) -> float:
        """Operations per second of a product of matrices."""
        size, device = 768, self.plan.space.device
        matrix = torch.ones(size, size, device=device)
        matrix @ matrix
        return 2 * size**3 / max(1e-6, _timed(lambda: matrix @ matrix, device))

    @cached_property
    def memory_plan(self) -> MemoryPlan | None:
        plan, config = self.plan, self.plan.config
        if not plan.maps:
            return None
        about = config.batch_size, len(config.samples), plan.space.memory
        plans = [
            plan_memory(
                self.source,
                self.target,
                dict.fromkeys(of[0], kept.most),
                *about,
                dict.fromkeys(of[1], kept.most),
                kept.grams,
            )
            for kept, of in plan.collected.items()
        ]
        return max(plans, key=lambda one: one.peak)

    # Samples and seconds ----------------------------------------------------------------------------------------------

    def samples(self, step: Step) -> int:
        return sum(count for _, count in self._passes(step))

    def seconds(self, step: Step) -> float:
        passes = sum(count * self.speed(files).forward for files, count in self._passes(step))
        stage, args = step.stage, step.args
        if stage.startswith("collect-") and "parameter" not in stage and "scales" not in stage:
            return passes * OVERHEAD
        if stage == "procrustes":
            (block,) = args
            costs = (
                decomposition(*shape, part.rule.most) * len(part.counts)
                for part in block.parts
                for shape in self._shapes(part)
            )
            return MAP * sum(costs) / self.rate
        if stage in ("transfer", "carry-adapter"):  # in the factors it is less
            matched = match_sites(self.source.sites, self.target.sites)
            return sum(applying(matched[s.name].shape, s.shape) for s in self.target.sites) / self.rate
        prepared = {files: min(count, self._there(files)) for files, count in self._passes(step)}
        return passes + sum(count * self.speed(files).prepare for files, count in prepared.items())

    def _there(self, files: ModelFiles) -> int:
        return max(task.open().sizes[split] for task in self.plan.tasks.values() for split in SPLITS)

    def _passes(self, step: Step) -> list[tuple[ModelFiles, int]]:
        """How many samples go through which model; a pass backward counts as one more, one with weights as two."""
        plan, stage, args = self.plan, step.stage, step.args
        match stage:
            case "fine-tune":
                files, _, config, *_ = args
                return [(files, 3 * config.steps * config.batch_size)]
            case "class-distances":
                files, task = args
                return [(files, task.open().sizes["train"])]
            case "collect-scales":
                calibration, side = args
                return [(calibration.model(side), max(calibration.counts.values()))]
            case "collect-parameter-gradients":
                return [(plan.target, 3 * max(args[0].counts.values()))]
            case "evaluate" | "measure-pairs" | "measure-completions":
                return [(args[0], self._tested(args[1]))]
            case "probe":
                files, task, _, _, indices, *_ = (*args, None, None)
                fitted = task.open().sizes["train"] if indices is None else len(indices)
                return [(files, fitted + self._tested(task))]
            case "validate":
                files, _, _, _, held, probe = args
                return [(files, len(held.rows) + len(probe or ()))]
            case "last-steps":
                (_, _), _, _, _, steps, evidence, drawn = args
                seen = (evidence.budget.size or 0) + sum(len(one.indices) for one in drawn[1:] if one is not None)
                trained = sum(3 * one.steps * one.batch_size for one in steps if isinstance(one, Tune | Lora))
                searched = sum(8 * seen for one in steps if isinstance(one, Search))
                return [(plan.source, seen), (plan.target, seen + trained + searched)]
            case _ if stage in STAGES.values():
                passes = len(self.memory_plan.passes) if self.memory_plan else 1
                seen = 2 * passes * max(args[0].calibration.counts.values())
                return [(plan.source, seen), (plan.target, seen)]
        return []

    def _tested(self, task: TaskRef) -> int:
        size, limit = task.open().sizes["test"], self.plan.config.test_limit
        return size if limit is None else min(size, limit)

    # Bytes ------------------------------------------------------------------------------------------------------------

    def bytes(self, step: Step) -> int:
        """What a stage leaves in the store."""
        plan, stage, args = self.plan, step.stage, step.args
        match stage:
            case "fine-tune" | "adopt-expert":
                return self.state_bytes(args[0])
            case "transfer" | "carry-adapter" | "last-steps":
                return self.state_bytes(plan.target)
            case "collect-parameter-gradients":
                return self.state_bytes(plan.target) * len(args[0].counts) * len(args[1])
            case "procrustes":
                (block,) = args
                return sum(
                    len(part.counts) * (FLOAT32 * (a + b) * kept + 2 * FLOAT32 * min(a, b))
                    for part in block.parts
                    for a, b in self._shapes(part)
                    for kept in [min(a, b, part.rule.most or min(a, b))]
                )
            case _ if stage in STAGES.values():  # gone when its maps are solved
                return 0
        return SMALL

    def _shapes(self, part: Any) -> list[tuple[int, int]]:
        sites = [site for site in self.target.sites if site.group == part.group]
        shapes = covariance_shapes(
            self.source.sites, self.target.sites, sites, [part.signal], [part.signal] * part.beside
        )
        return [shape for (tensor, signal), shape in shapes.items() if tensor in part.tensors]

    def memory(self, ahead: Ahead) -> int:
        """What this process holds by now, and the largest of what comes on top of it."""
        stages = {step.stage for step in ahead.steps}
        more = [0]
        if self.memory_plan and stages & {*STAGES.values()}:
            more.append(self.memory_plan.batch + self.memory_plan.covariances)
        if "fine-tune" in stages:  # gradients, two moments, and the parameters as they were
            more.append(4 * max(self.state_bytes(files) for files in (self.plan.source, self.plan.target)))
        kept = sum(
            min(1 << 30, size * self.speed(files).sample)
            for task in self.plan.tasks.values()
            for files in (self.plan.source, self.plan.target)
            for size in (task.open().sizes[split] for split in SPLITS)
        )
        return resident() + max(more) + (min(kept, 4 << 30) if ahead.steps else 0)


def measure(plan: Plan, files: ModelFiles, task: TaskRef) -> Speed:
    """Shows a model a batch of a task's test samples."""
    device = plan.space.device
    model, data = open_model(files, device), open_split(files, device, task, "test")
    indices = torch.arange(min(PROBE, len(data)))
    started = time.perf_counter()
    inputs, _ = data.batch(indices)
    prepared = (time.perf_counter() - started) / len(indices)
    with torch.no_grad():
        model.features(inputs)  # the first call sets things up
        seconds = min(_timed(lambda: model.features(inputs), device) for _ in range(2))
    return Speed(seconds / len(indices), prepared, data.kept_bytes // len(indices))


def _timed(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def resident() -> int:
    """Bytes that this process has held at most, so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
