"""How far a long stage is: as an artifact in Prefect, and to whoever listens in this process."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectException

T = TypeVar("T")
LISTENERS: list[Callable[[str, int, int], None]] = []
"""Told of every step at once: what is counted, how many are done, of how many."""
FIRST, EVERY = 3.0, 2.0
"""Seconds before a stage counts as long, and between two updates."""


@contextmanager
def reported(stage: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows the progress of a stage in Prefect, if it lasts; a stage that ends soon leaves no artifact.

    Arguments:
        stage: The artifact's key: "progress-STAGE".
        what: What is counted, for its description.
        total: How much there is to do.

    Yields:
        What to call with how much is done; cheap, however often.
    """
    artifact: UUID | None = None
    due = time.monotonic() + FIRST
    # A stage that is tried outside of Prefect has nobody to tell.
    somebody = TaskRunContext.get() is not None or FlowRunContext.get() is not None

    def show(done: int) -> None:
        nonlocal artifact, due
        due = time.monotonic() + EVERY
        percent = 100.0 * min(done, total) / max(1, total)
        # Whether anybody can watch must not decide whether the work gets done.
        with suppress(httpx.HTTPError, PrefectException, OSError):
            if artifact is None:
                made = create_progress_artifact(percent, key=f"progress-{stage}", description=f"{what}, of {total}")
                artifact = cast(UUID, made)  # a coroutine only where an event loop runs
            else:
                update_progress_artifact(artifact, percent)

    def advance(done: int) -> None:
        for listener in LISTENERS:
            listener(what, done, total)
        if somebody and time.monotonic() >= due:
            show(done)

    yield advance
    if artifact is not None:
        show(total)


def counted(items: Iterable[T], advance: Callable[[int], None]) -> Iterator[T]:
    """Passes items through and tells how many have been asked for and dealt with."""
    for done, item in enumerate(items):
        advance(done)
        yield item
