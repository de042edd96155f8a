"""Several faults at once, one after the other in each of a few processes.

A trial changes its process for the time that it takes: the environment, the store's code, mounts, the server of a
bucket. So each job is a process with all of that of its own, forked from one that has loaded everything.
"""

import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

from tests.faults.injections import Injection, injections
from tests.faults.trials import Outcome
from tests.faults.warm import DIE_WITH_PARENT, copied
from tests.places import serving_s3

_WAITING: dict[str, Injection] = {}
"""In a job's process: all faults by name."""


def perform(
    names: Iterable[str], jobs: int, parts: tuple[str, ...], repeats: int, folder: Path
) -> Iterator[tuple[str, float, Outcome]]:
    """Injects faults, several at once.

    Arguments:
        names: Which ones, of `injections(parts, repeats, …)`; begun in this order.
        jobs: How many processes share them.
        folder: With the models of whole runs, if there are any; each job makes a folder of its own in it.

    Yields:
        For each fault, as soon as it is over, its name, the seconds it took, and what came of it.

    Raises:
        BrokenProcessPool: If a job's process died.
    """
    told = parts, repeats, folder
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _begin, told) as pool:
        for done in as_completed([pool.submit(_perform, name) for name in names]):
            yield done.result()


def _begin(parts: tuple[str, ...], repeats: int, folder: Path) -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)  # nothing outlives the session
    held = ExitStack()
    Finalize(held, held.close, exitpriority=10)
    own = folder / f"job-{os.getpid()}"
    own.mkdir()
    held.enter_context(copied())  # before there are threads
    held.enter_context(serving_s3())

    @cache
    def bench():
        from tests.faults.runs import Bench

        made = Bench(own, models=folder)
        held.callback(made.close)
        return made

    _WAITING.update(injections(parts, repeats, bench))


def _perform(name: str) -> tuple[str, float, Outcome]:
    started = time.perf_counter()
    outcome = _WAITING[name].run()
    return name, time.perf_counter() - started, outcome
