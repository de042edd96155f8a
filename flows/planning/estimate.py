"""What a run will cost in time, memory and on the disk: from shapes, and from one batch that each model is shown.

Time is operations over speeds. Speeds are measured on the spot (`flows.planning.speeds`); how many samples each stage takes, and
how large what it leaves is, follows from what it is called with. What earlier runs of this machine have taken beside their
estimates is told by `flows.planning.pace`.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bico.calibration.memory import FLOAT32, MemoryPlan, covariance_shapes, plan_memory, weight_bytes
from bico.last_steps.head import Head
from bico.last_steps.lora import Lora
from bico.last_steps.search import Search
from bico.last_steps.tune import Tune
from bico.models.loading import ModelFiles
from bico.models.matching import match_sites
from bico.models.protocol import CLASSLESS, COMPLETION, PROBE, Model
from bico.reporting.cost import applying, decomposition
from flows.commands.links import prefect_is_configured
from flows.planning.adapters import rank_of
from flows.planning.costs import Estimate, held, resident
from flows.planning.forecast import Ahead, Step, look_ahead
from flows.planning.pace import REST, Pace, read_pace
from flows.planning.plan import Plan
from flows.planning.speeds import Speed, fit_seconds, measure, product_rate
from flows.settings import Settings
from tasks.collect import STAGES
from tasks.inputs import TaskRef, open_model

SERVER = 6.0
"""Seconds until Prefect's server answers, where nothing is served."""
DATABASE = 1.5
"""Seconds until MLflow has made a database, where there is none."""
RUN = 1.0
"""Seconds that the flow run itself takes: its tables, plots and page, and its record in MLflow."""
EACH, FOUND = 0.15, 0.05
"""Seconds that a stage takes beside its work, and one that is found."""
ROW = 0.06
"""Seconds that MLflow takes for a cell."""
OVERHEAD = 1.4
"""Of a calibration pass over the bare passes: products of rows, and taking the model apart (docs/speed.md)."""
MAP = 12.0
"""Operations of a decomposition over the paper's estimate of it."""
FOLDS = 4
"""Probes that judge calibration samples, each fitted without a part of them."""
SMALL = 1500
"""Bytes of an artefact that holds numbers only, its manifest included."""
PAPERS = 110_000
"""Bytes of tables and a plot."""
BATCH = 250
"""Samples of a batch that is measured."""
SPLIT, SPLITS = 1 << 30, 4 << 30
"""Bytes of preprocessed examples that one split keeps, and all."""


@dataclass(frozen=True)
class Use:
    """What a stage asks of one model on one split."""

    files: ModelFiles
    task: TaskRef
    split: str
    rows: int
    """Different examples; they are prepared once in a run."""
    forward: int = 0
    """Samples that go through the model."""
    frozen: int = 0
    """Those that go through it and back to its inputs."""
    train: int = 0
    """Those that go through it and back to its parameters."""
    fitted: int = 0
    """Samples that probes are fitted on."""
    anew: int = 0
    """Examples that are prepared once more, since nothing keeps them."""

    @property
    def passes(self) -> int:
        """A pass backward counts as one more, one with parameters as two."""
        return self.forward + 2 * self.frozen + 3 * self.train


def forecast(plan: Plan, settings: Settings, begun: float | None = None) -> tuple[Ahead, Estimate]:
    """What a planned transfer will do, and what that will cost.

    Arguments:
        begun: By `time.perf_counter`, when the command began that the run belongs to: what has passed since is part of it.
    """
    ahead = look_ahead(plan, settings)
    written = {"none": 0, "all": ahead.vectors}.get(plan.config.export, len(plan.config.carried))
    services = 0.0 if prefect_is_configured() else SERVER
    if settings.mlflow_uri is None and not (settings.home / "mlflow.db").exists():
        services += DATABASE
    cost = estimate(plan, ahead, written, services, read_pace(settings.home))
    return ahead, cost if begun is None else replace(cost, seconds=cost.seconds + time.perf_counter() - begun)


def estimate(plan: Plan, ahead: Ahead, exports: int, services: float, pace: Pace) -> Estimate:
    """Shows each model a batch, and adds up.

    Arguments:
        exports: How many models will be written.
        services: Seconds until what the run talks to is there.
        pace: What earlier runs here have taken beside their estimates.
    """
    from flows.planning.blockwise_cost import ByBlock

    known = (ByBlock if plan.source.blockwise else Known)(plan)
    looked = [(step.stage, *known.look(step)) for step in ahead.steps]
    steps = tuple((stage, pace.of(stage) * (seconds + EACH)) for stage, seconds, _ in looked)
    written = exports * known.written
    found = ahead.totals["cached"]
    fixed = pace.of(REST) * (services + RUN + FOUND * found + ROW * ahead.rows + 2 * written / 2e8)
    return Estimate(
        steps,
        fixed,
        fixed + sum(seconds for _, seconds in steps),
        sum(passes for *_, passes in looked),
        known.memory(ahead),
        sum(known.bytes(step) for step in ahead.steps),
        2 * PAPERS + written,
        {stage: pace.of(stage) for stage in (REST, *(stage for stage, *_ in looked))},
        known.passing(ahead),
    )


class Known:
    """Shapes and speeds of a plan, and what they make of each stage."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.source, self.target = (self.model(files) for files in (plan.source, plan.target))
        self._speeds: dict[tuple[ModelFiles, TaskRef], Speed] = {}
        self._heads: set[tuple[ModelFiles, str, tuple[int, ...] | None]] = set()
        """Heads that are fitted by now."""
        self._fits: dict[tuple[int, int, int], float] = {}
        self._prepared: dict[tuple[ModelFiles, TaskRef, str], dict[str, int]] = defaultdict(dict)
        """By split, how many examples each kind of stage has asked for so far."""

    def model(self, files: ModelFiles) -> Model:
        return open_model(files, self.plan.space.device)

    def speed(self, files: ModelFiles, task: TaskRef) -> Speed:
        """Pictures are all of the model's size, so those of one task tell; texts are as long as they are."""
        if self.model(files).modality != "text":
            task = next(iter(self.plan.tasks.values()))
        key = files, task.bare
        if key not in self._speeds:
            self._speeds[key] = measure(self.plan.space.device, *key)
        return self._speeds[key]

    def passing(self, ahead: Ahead) -> int:
        """Bytes on the disk that go again, where they are worth telling."""
        return 0

    @property
    def written(self) -> int:
        """Bytes of a model that is written, with its task vector; or of an adapter."""
        if self.plan.config.write == "adapter":
            return self.adapter_bytes
        return weight_bytes(self.target) + self.state_bytes(self.plan.target)

    @property
    def adapter_bytes(self) -> int:
        rank = rank_of(self.plan.config) or 0
        return FLOAT32 * rank * sum(sum(site.shape) for site in self.target.sites)

    def state_bytes(self, files: ModelFiles) -> int:
        return FLOAT32 * sum(tensor.numel() for tensor in self.model(files).state().values())

    @cached_property
    def rate(self) -> float:
        return product_rate(self.plan.space.device)

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

    # Seconds ----------------------------------------------------------------------------------------------------------

    def look(self, step: Step) -> tuple[float, int]:
        """Seconds and passes of a stage; of steps in their order, since what one has prepared is there for the next."""
        uses = list(self._uses(step))
        seconds = sum(self._seconds(step.stage, use) for use in uses)
        return seconds + self._algebra(step), sum(use.passes for use in uses)

    def _algebra(self, step: Step) -> float:
        """Seconds of stages that show a model nothing."""
        stage, args = step.stage, step.args
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
        return 0.0

    def _seconds(self, stage: str, use: Use) -> float:
        speed = self.speed(use.files, use.task)
        back = speed.train - speed.forward
        passes = use.forward * speed.forward + use.frozen * (speed.forward + back / 2) + use.train * speed.train
        passes *= OVERHEAD if stage in STAGES.values() else 1.0
        asked = self._prepared[use.files, use.task.bare, use.split]
        before = self._rows(use.task, use.split, asked)
        asked[stage] = max(use.rows, asked.get(stage, 0))
        prepared = self._rows(use.task, use.split, asked) - before + use.anew
        return passes + prepared * speed.prepare + self._fitting(use)

    def _fitting(self, use: Use) -> float:
        if not use.fitted:
            return 0.0
        width, classes = self.model(use.files).sites[-1].shape[0], len(use.task.open().class_names)
        key = use.fitted, width, classes
        if key not in self._fits:
            self._fits[key] = fit_seconds(*key)
        return self._fits[key]

    def _rows(self, task: TaskRef, split: str, asked: dict[str, int]) -> int:
        """Examples of a split that are prepared once all kinds of stages have had theirs, which are not the same."""
        return min(self._size(task, split), sum(asked.values()))

    def _uses(self, step: Step) -> Iterator[Use]:
        """What a stage asks of models."""
        plan, stage, args = self.plan, step.stage, step.args
        match stage:
            case "fine-tune":
                files, task, config, *_ = args
                drawn = config.steps * config.batch_size
                yield from self._head(files, task)
                yield Use(files, task, "train", min(drawn, self._size(task, "train")), train=drawn)
            case "class-distances":
                files, task = args
                yield self._forward(files, task, "train")
            case "collect-scales":
                calibration, side = args
                count = max(calibration.counts.values())
                yield from self._head(calibration.model(side), calibration.task, calibration.head_indices)
                yield Use(calibration.model(side), calibration.task, "train", count, frozen=count)
            case "collect-parameter-gradients":
                count = max(args[0].counts.values())
                yield Use(plan.target, args[0].task, "train", count, train=count)
            case "measure-completions":
                count, answers = self._tested(args[1]), len(args[1].open().class_names)
                yield Use(args[0], args[1], "test", 0, forward=count * (1 + answers), anew=count * (1 + answers))
            case "evaluate" | "measure-pairs":
                yield self._forward(args[0], args[1], "test")
            case "probe":
                files, task, _, _, indices, *_ = (*args, None, None)
                fitted = self._size(task, "train") if indices is None else len(indices)
                yield Use(files, task, "train", fitted, forward=fitted, fitted=fitted)
                yield self._forward(files, task, "test")
            case "validate" if args[1].loss == COMPLETION:
                count = len(args[4].rows) * (1 + len(args[1].open().class_names))
                yield Use(args[0], args[1], "train", 0, forward=count, anew=count)
            case "validate":
                files, task, _, _, held, probe = args
                rows = len(held.rows) + len(probe or ())
                fitted = len(probe or ()) if held.unseen or task.loss in CLASSLESS else FOLDS * len(held.rows)
                yield Use(files, task, "train", rows, forward=rows, fitted=fitted)
            case "last-steps":
                (_, _), _, _, _, steps, evidence, drawn = args
                task = next(one for one in drawn if one is not None).task
                seen = (evidence.budget.size or 0) + sum(len(one.indices) for one in drawn[1:] if one is not None)
                trained = sum(one.steps * one.batch_size for one in steps if isinstance(one, Tune | Lora))
                searched = sum(8 * seen for one in steps if isinstance(one, Search))
                yield Use(plan.source, task, "train", seen, forward=seen)
                yield Use(plan.target, task, "train", seen, forward=seen + searched, train=trained)
            case _ if stage in STAGES.values():
                calibration = args[0].calibration
                count, passes = (
                    max(calibration.counts.values()),
                    len(self.memory_plan.passes) if self.memory_plan else 1,
                )
                for files in (plan.source, plan.target):
                    yield from self._head(files, calibration.task, calibration.head_indices)
                    yield Use(files, calibration.task, "train", count, frozen=passes * count)

    def _forward(self, files: ModelFiles, task: TaskRef, split: str) -> Use:
        count = self._tested(task) if split == "test" else self._size(task, split)
        return Use(files, task, split, count, forward=count)

    def _head(self, files: ModelFiles, task: TaskRef, indices: tuple[int, ...] | None = None) -> Iterator[Use]:
        """The head of a loss that has to be fitted first; it is kept for who wants the same."""
        if task.loss != PROBE or task.own_head is not None or (key := (files, task.name, indices)) in self._heads:
            return
        self._heads.add(key)
        enough = getattr(self.model(files), "probe_samples", None) or self._size(task, "train")
        fitted = min(enough, self._size(task, "train")) if indices is None else len(indices)
        yield Use(files, task, "train", fitted, forward=fitted, fitted=fitted)

    def _size(self, task: TaskRef, split: str) -> int:
        return task.open().sizes[split]

    def _tested(self, task: TaskRef) -> int:
        size, limit = self._size(task, "test"), self.plan.config.test_limit
        return size if limit is None else min(size, limit)

    # Bytes ------------------------------------------------------------------------------------------------------------

    def bytes(self, step: Step) -> int:
        """What a stage leaves in the store."""
        plan, stage, args = self.plan, step.stage, step.args
        match stage:
            case "fine-tune" | "adopt-expert":
                return self.state_bytes(args[0])
            case "carry-adapter":
                return self.state_bytes(plan.target) + self.adapter_bytes
            case "last-steps" if args[2] is None and all(isinstance(one, Head) for one in args[4]):
                # A classifier on the target as it is.
                classes = max(len(task.open().class_names) for task in plan.tasks.values())
                return SMALL + FLOAT32 * classes * (1 + max(max(site.shape) for site in self.target.sites))
            case "transfer" | "last-steps":
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
        """Bytes at the peak: what this process holds by now, what it keeps, and the most that a stage takes besides."""
        plan, stages = self.plan, {step.stage for step in ahead.steps}
        speeds = {files: speed for (files, _), speed in self._speeds.items()}
        if not ahead.steps:
            return resident()
        # Weights as they were, as they will be, and what is added; of a written model its copy.
        more = [2 * self.state_bytes(plan.source) + 2 * self.state_bytes(plan.target) + weight_bytes(self.target)]
        if self.memory_plan and stages & {*STAGES.values()}:
            batch = plan.config.batch_size * sum(speed.saved for speed in speeds.values())
            more.append(min(self.memory_plan.batch, batch or self.memory_plan.batch) + self.memory_plan.covariances)
        for step in ahead.steps:
            if step.stage == "fine-tune":  # gradients, two moments, and the parameters as they were
                files, _, config, *_ = step.args
                batch = config.batch_size * (speeds[files].saved if files in speeds else 0)
                more.append(4 * self.state_bytes(files) + batch)
        for files, speed in speeds.items():  # a batch without a way back holds what one block does
            more.append(BATCH * speed.saved // len({site.group for site in self.model(files).sites}))
        kept = sum(
            min(SPLIT, self._rows(task, split, asked) * self.speed(files, task).sample)
            for (files, task, split), asked in self._prepared.items()
        )
        return max(resident(), held() + min(kept, SPLITS) + max(more))
