"""Running stages from a flow: what was computed, what was found in the store, and how long it took."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect import Task, get_run_logger

from tasks.cached_stage import Done, result_of


class Ledger:
    """Runs stages, counts them, and tells the log what each phase took.

    Arguments:
        limit: Seconds that one stage may take.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._limit = limit
        self.counts: dict[str, Counter[str]] = {}
        self.phases: list[tuple[str, float]] = []
        """What was done, and how many seconds it took."""
        self.log = get_run_logger()

    def run(self, task: Task, *args: Any, label: str | None = None) -> Done:
        """Runs a stage in this process; the label tells its run from others in Prefect."""
        named = f"{task.name} {label}".replace("{", "{{").replace("}", "}}")  # Prefect takes it for a template
        options: dict[str, Any] = {"task_run_name": named} if label else {}
        if self._limit is not None:
            options["timeout_seconds"] = self._limit
        return self.add(result_of(task.with_options(**options) if options else task, *args))

    def add(self, done: Done) -> Done:
        self.counts.setdefault(done.stage, Counter(computed=0, cached=0))["cached" if done.cached else "computed"] += 1
        return done

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        started, before = time.perf_counter(), totals(self.counts)
        yield
        after = totals(self.counts)
        numbers = ", ".join(f"{after[word] - before[word]} {word}" for word in after)
        self.phases.append((what, time.perf_counter() - started))
        self.log.info("%s: %s (%.1f s)", what, numbers, self.phases[-1][1])


def totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {word: sum(c[word] for c in counts.values()) for word in ("computed", "cached")}
