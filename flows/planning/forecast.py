"""What a run will do: the flow's own steps are walked through, and no stage is run.

Every artefact's key is known beforehand, so the store tells which stages will be found; what a stage would have left, the
next one only needs the name of.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from prefect import Task

from flows.choice import choose_all
from flows.collect import calibrate
from flows.ledger import Ledger
from flows.planning.plan import Plan
from flows.planning.stage_keys import KEYS, goes_with, left_beside
from flows.records.result import totals
from flows.services.solving import Solver
from flows.settings import Settings
from flows.transfer import fine_tune_all, transfer_all
from storage.keys import Ref
from storage.manifest import FaultError
from tasks.cached_stage import Done, Workspace
from tasks.distances import class_distances
from tasks.maps import BlockMaps
from tasks.procrustes import solve_maps

T = TypeVar("T")
_QUIET = logging.getLogger("bico.forecast")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False
_QUIET.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Step:
    """A stage that will be computed."""

    stage: str
    args: tuple[Any, ...]
    """What it will be called with, without the workspace."""


class Forecast(Ledger):
    """Counts stages in place of running them."""

    def __init__(self, space: Workspace) -> None:
        super().__init__(log=_QUIET)
        self._backend = space.artefacts.backend
        self._made: set[str] = set()
        self._space = space
        self.steps: list[Step] = []
        """What will be computed, in order."""

    def run(self, task: Task, *args: Any, label: str | None = None) -> Done:
        keys = KEYS[task.name](*args)
        found = all(self.is_there(key) for key in keys)
        if not found:
            self.steps.append(Step(task.name, args[1:]))
            self._made.update(keys, left_beside(args))
        return self._count(Done(task.name, Ref(keys[0], self._space.store), found and not goes_with(args)))

    def solve(self, space: Workspace, blocks: list[BlockMaps], solver: Solver) -> None:
        for block in blocks:
            self.run(solve_maps, space, block)

    def discard(self, space: Workspace, keys: Iterable[str]) -> None:
        self._made.difference_update(keys)

    def read(self, how: Any, ref: Ref, otherwise: T) -> T:
        return otherwise

    def is_there(self, key: str) -> bool:
        """Whether an artefact will be there by now, by its manifest and sizes: a run reads it through."""
        if key in self._made:
            return True
        try:
            self._backend.look(key)
        except FaultError:
            return False
        return True

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        yield

    def _count(self, done: Done) -> Done:
        self.counts.setdefault(done.stage, Counter(computed=0, cached=0))["cached" if done.cached else "computed"] += 1
        return done


@dataclass(frozen=True)
class Ahead:
    """What a run will do."""

    stages: dict[str, dict[str, int]]
    """Per stage: how many will be computed and how many are there."""
    steps: tuple[Step, ...]
    rows: int
    """Cells that will stand in the table."""
    vectors: int
    """Task vectors among them."""

    @property
    def totals(self) -> dict[str, int]:
        return totals(self.stages)


def look_ahead(plan: Plan, settings: Settings) -> Ahead:
    """Returns what a transfer will compute, and what it will find."""
    forecast = Forecast(plan.space)
    plan = _with_samples_known(plan, forecast)
    experts, oracles = fine_tune_all(plan, forecast, False)
    collected = calibrate(plan, settings, forecast, experts)
    rows, vectors = transfer_all(plan, experts, oracles, collected, forecast)
    choose_all(plan, vectors, collected, forecast)
    stages = {stage: dict(counter) for stage, counter in forecast.counts.items()}
    return Ahead(stages, tuple(forecast.steps), len(rows), len(vectors))


UNKNOWN = 2**40
"""Added to seeds that stand in for a draw that nobody can tell yet."""


def _with_samples_known(plan: Plan, forecast: Forecast) -> Plan:
    """Samples that are chosen by a distance nobody has measured yet are unknown: so is all that follows, and it will be
    computed. Others of the same number stand in.
    """
    config = plan.config
    if not config.sampling.by_distance or not (plan.uses_samples or plan.probed):
        return plan
    measured = [forecast.run(class_distances, plan.space, plan.target, task).cached for task in {*plan.tasks.values()}]
    if all(measured):
        forecast.counts.clear()  # the walk counts them itself
        return plan
    seeds = [seed + UNKNOWN for seed in config.seeds]
    return replace(plan, config=config.model_copy(update={"sampling": type(config.sampling).RANDOM, "seeds": seeds}))
