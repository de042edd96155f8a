"""How far a run is, for whoever waits for it: two bars in a terminal, and a line every few seconds where there is none.

Stages say what they begin and how far they are (`tasks.progress`); what is left is told by the plan's estimate, at the pace
of what has been done so far. Nothing here can stop a run.
"""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from tasks import progress

EVERY = 10.0
"""Seconds between two lines."""
FIRST = 5.0
"""Seconds before the first one: a short run says nothing of itself."""
PACE = (0.1, 10.0)
"""How far from its estimate a run may be for what is left to be told by it."""


class Watch:
    """What is known of a run while it runs.

    Arguments:
        stages: How many there will be, computed or found.
        seconds: The estimates of those that will be computed, in order, by stage.
    """

    def __init__(self, stages: int, seconds: Sequence[tuple[str, float]]) -> None:
        self.stages, self.done = stages, 0
        self._left = list(seconds)
        self._spent = self._expected = 0.0
        self.stage, self.label, self.counted = "", "", ""
        self.at, self.total, self._begun = 0, 0, time.monotonic()

    def begins(self, stage: str, label: str) -> None:
        self.stage, self.label, self.counted, self.at, self.total = stage, label, "", 0, 0
        self._begun = time.monotonic()

    def advances(self, what: str, done: int, total: int) -> None:
        self.counted, self.at, self.total = what, done, total

    def ended(self, stage: str, cached: bool) -> None:
        self.done += 1
        self.at = self.total = 0
        place = next((n for n, (name, _) in enumerate(self._left) if name == stage), None)
        if cached or place is None:
            return
        _, expected = self._left.pop(place)
        now = time.monotonic()
        self._spent += now - self._begun
        self._expected += expected
        self._begun = now

    @property
    def stage_left(self) -> float | None:
        """Seconds until the stage ends, by how far it is."""
        if not self.at or not self.total:
            return None
        return (time.monotonic() - self._begun) * (self.total - self.at) / self.at

    @property
    def left(self) -> float | None:
        """Seconds until the run ends."""
        if not self._left:
            return None
        pace = 1.0 if self._expected < 1.0 else min(max(self._spent / self._expected, PACE[0]), PACE[1])
        (_, first), *others = self._left
        now = self.stage_left
        if now is None:
            now = max(0.0, first * pace - (time.monotonic() - self._begun))
        return now + pace * sum(seconds for _, seconds in others)

    @property
    def line(self) -> str:
        """Such as "stage 5 of 29, fine-tune digits: 40 of 100 steps, 12 s left; the run: about 2 min left"."""
        if not self.stage:
            return "starting"
        parts = f"stage {min(self.done + 1, self.stages)} of {self.stages}, {' '.join(filter(None, (self.stage, self.label)))}"
        if self.total:
            parts += f": {self.at} of {self.total} {self.counted}"
        if (seconds := self.stage_left) is not None:
            parts += f", {duration(seconds)} left"
        return parts + ("" if (whole := self.left) is None else f"; the run: about {duration(whole)} left")


_watched: list[Watch] = []
"""The run that is shown, if one is."""


def begins(stage: str, label: str | None = None) -> None:
    for watch in _watched:
        watch.begins(stage, label or "")


def ended(stage: str, cached: bool) -> None:
    for watch in _watched:
        watch.ended(stage, cached)


@contextmanager
def watching(stages: int, seconds: Sequence[tuple[str, float]], stream: TextIO | None = None) -> Iterator[Watch]:
    """Shows how far the run of this context is, on standard error."""
    stream = stream or sys.stderr
    watch = Watch(stages, seconds)
    _watched.append(watch)
    progress.LISTENERS.append(watch.advances)
    over = threading.Event()
    show = _bars if stream.isatty() else _lines
    teller = threading.Thread(target=show, args=(watch, over, stream), daemon=True)
    teller.start()
    try:
        yield watch
    finally:
        _watched.remove(watch)
        progress.LISTENERS.remove(watch.advances)
        over.set()
        teller.join(timeout=5)


def _lines(watch: Watch, over: threading.Event, stream: TextIO) -> None:
    wait = FIRST
    while not over.wait(wait):
        wait = EVERY
        print(f"{time.strftime('%H:%M:%S')}  {watch.line}", file=stream, flush=True)


def _bars(watch: Watch, over: threading.Event, stream: TextIO) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bars:
        run = bars.add_task("run", total=max(1, watch.stages), told="")
        stage = bars.add_task("stage", total=None, told="")
        while not over.wait(0.25):
            left, now = watch.left, watch.stage_left
            whole = "" if left is None else f", about {duration(left)} left"
            bars.update(run, completed=watch.done, told=f"{watch.done} of {watch.stages} stages{whole}")
            at = f"{watch.at} of {watch.total} {watch.counted}" if watch.total else ""
            bars.update(
                stage,
                description=" ".join(filter(None, (watch.stage, watch.label)))[:48] or "stage",
                total=watch.total or None,
                completed=watch.at,
                told=at + ("" if now is None else f", {duration(now)} left"),
            )


def duration(seconds: float) -> str:
    """Example:
    >>> duration(0.4), duration(75), duration(600), duration(9000)
    ('0 s', '75 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
