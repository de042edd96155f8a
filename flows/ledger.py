"""Running stages from a flow: what was computed, what was found in the store, and how long it took."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect import Task, get_run_logger

from flows.commands import watch
from flows.records.result import totals
from flows.services.solving import Solver
from storage.keys import Ref
from tasks.cached_stage import Done, Workspace, result_of
from tasks.maps import BlockMaps

__all__ = ["Ledger", "totals"]
T = TypeVar("T")


class Ledger:
    """Runs stages, counts them, and tells the log what each phase took. A forecast does all but run them
    (`flows.planning.forecast`), so what a flow does goes by way of it.

    Arguments:
        limit: Seconds that one stage may take.
        log: By default the flow run's.
    """

    def __init__(self, limit: float | None = None, log: Any = None) -> None:
        self._limit = limit
        self.counts: dict[str, Counter[str]] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """What computed stages took, by stage; of those that others' passes have left, nothing."""
        self.phases: list[tuple[str, float]] = []
        """What was done, and how many seconds it took."""
        self.log: Any = log or get_run_logger()

    def run(self, task: Task, *args: Any, label: str | None = None) -> Done:
        """Runs a stage in this process; the label tells its run from others in Prefect."""
        named = f"{task.name} {label}".replace("{", "{{").replace("}", "}}")  # Prefect takes it for a template
        options: dict[str, Any] = {"task_run_name": named} if label else {}
        if self._limit is not None:
            options["timeout_seconds"] = self._limit
        watch.begins(task.name, label)
        started = time.perf_counter()
        done = self.add(result_of(task.with_options(**options) if options else task, *args))
        if not done.cached:
            self.seconds[done.stage] += time.perf_counter() - started
        return done

    def solve(self, space: Workspace, blocks: list[BlockMaps], solver: Solver) -> None:
        """Solves the maps of blocks that lack some."""
        watch.begins("procrustes", f"{len(blocks)} blocks")
        started = time.perf_counter()
        for done in solver.solve(space, blocks):
            self.add(done)
        self.seconds["procrustes"] += time.perf_counter() - started

    def discard(self, space: Workspace, keys: Iterable[str]) -> None:
        """Removes artefacts that have served."""
        for key in keys:
            space.artefacts.discard(key)

    def read(self, how: Callable[[Ref], T], ref: Ref, otherwise: T) -> T:
        """Reads what a stage has left.

        Arguments:
            otherwise: What stands in for it where nothing is run.
        """
        return how(ref)

    def add(self, done: Done) -> Done:
        self.counts.setdefault(done.stage, Counter(computed=0, cached=0))["cached" if done.cached else "computed"] += 1
        watch.ended(done.stage, done.cached)
        return done

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        started, before = time.perf_counter(), totals(self.counts)
        yield
        after = totals(self.counts)
        numbers = ", ".join(f"{after[word] - before[word]} {word}" for word in after)
        self.phases.append((what, time.perf_counter() - started))
        self.log.info("%s: %s (%.1f s)", what, numbers, self.phases[-1][1])
