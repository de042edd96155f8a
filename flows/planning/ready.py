"""A plan that was made before its run: whoever has made it hands it over, so that the flow does not make it again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from flows.config import TransferConfig
from flows.planning.costs import Estimate
from flows.planning.plan import Plan, make_plan
from flows.settings import Settings


@dataclass(frozen=True)
class Ready:
    """A run that can begin."""

    config: TransferConfig
    """What was asked for, as it was asked."""
    settings: Settings
    plan: Plan
    cost: Estimate | None = None
    """What it was said to cost; None where nobody has estimated it."""
    begun: float = field(default_factory=time.perf_counter)
    """When whoever waits for the run began to, by `time.perf_counter`."""


_handed: ContextVar[Ready | None] = ContextVar("handed", default=None)


@contextmanager
def handed(ready: Ready) -> Iterator[None]:
    """Hands a plan to the flow that is called inside."""
    token = _handed.set(ready)
    try:
        yield
    finally:
        _handed.reset(token)


def ready_for(config: TransferConfig, settings: Settings) -> Ready:
    """The plan that was handed over, if it is of just this; else one that is made now.

    Raises:
        BicoError: The first thing that cannot work.
    """
    found = _handed.get()
    if found is not None and (found.config, found.settings) == (config, settings):
        return found
    return Ready(config, settings, make_plan(config, settings))
