"""Running stages from a flow: what was computed, what was found in the store, and how long it took."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect import Task, get_run_logger

from flows import watch
from flows.config import Settings
from flows.result import totals
from flows.solving import solve
from storage.keys import Ref
from tasks.cached_stage import Done, Workspace, result_of
from tasks.maps import BlockMaps

__all__ = ["Ledger", "totals"]
T = TypeVar("T")


class Ledger:
    """Runs stages, counts them, and tells the log what each phase took. A forecast does all but run them
    (`flows.forecast`), so what a flow does goes by way of it.

    Arguments:
        limit: Seconds that one stage may take.
        log: By default the flow run's.
    """

    def __init__(self, limit: float | None = None, log: Any = None) -> None:
        self._limit = limit
        self.counts: dict[str, Counter[str]] = {}
        self.log: Any = log or get_run_logger()

    def run(self, task: Task, *args: Any, label: str | None = None) -> Done:
        """Runs a stage in this process; the label tells its run from others in Prefect."""
        named = f"{task.name} {label}".replace("{", "{{").replace("}", "}}")  # Prefect takes it for a template
        options: dict[str, Any] = {"task_run_name": named} if label else {}
        if self._limit is not None:
            options["timeout_seconds"] = self._limit
        watch.begins(task.name, label)
        return self.add(result_of(task.with_options(**options) if options else task, *args))

    def solve(self, space: Workspace, blocks: list[BlockMaps], settings: Settings) -> None:
        """Solves the maps of blocks that lack some, here or on a cluster."""
        watch.begins("procrustes", f"{len(blocks)} blocks")
        for done in solve(space, blocks, settings):
            self.add(done)

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
        self.log.info("%s: %s (%.1f s)", what, numbers, time.perf_counter() - started)
