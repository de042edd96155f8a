"""What every cached step shares: a key, a build, and the word "Cached" when there was nothing to do.

Workers that solve maps import this: what models and data need is in `tasks/inputs.py`, which takes seconds to import.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from prefect import Task as PrefectTask
from prefect import get_run_logger
from prefect.client.schemas import State
from prefect.states import Completed

from bico.errors import StoreError
from storage.artefacts import ArtefactStore, open_store
from storage.gc import note_run
from storage.keys import Ref


@dataclass(frozen=True)
class Workspace:
    """Where artefacts go, and where and in how much memory tensors are computed; none of it changes a result, so none
    enters a key.
    """

    store: str
    device: str = "cpu"
    memory: float | None = None
    """Budget of a calibration, GB; without it, one pass serves all blocks."""
    allow_pickle: bool = False
    """Whether checkpoints that `torch.save` wrote may be read, tensors only."""

    @property
    def artefacts(self) -> ArtefactStore:
        return open_store(self.store)


@dataclass(frozen=True)
class Done:
    """A finished stage: its artefact, and whether it was there already."""

    stage: str
    ref: Ref
    cached: bool


@contextmanager
def noted(space: Workspace, run: str) -> Iterator[None]:
    """Leaves a note of what a run has used, however it ends, so that `bico cache gc` knows what runs need."""
    with space.artefacts.uses() as used:
        try:
            yield
        finally:
            try:
                note_run(space.artefacts, run, used)
            except StoreError as error:  # a store that is full or only for reading; the run itself may have done well
                get_run_logger().warning("This run leaves no note of what it used: %s", error)


def run_stage(
    space: Workspace, stage: str, key: str, build: Callable[[Path], None], meta: Mapping[str, object]
) -> Done | State[Done]:
    """Makes one artefact unless it is there; a hit shows as the state `Cached` in Prefect.

    The store is the only cache: Prefect keys on a task function's own lines and would miss a change inside `bico`, and
    its records outlive the artefacts they point to.
    """
    ref, cached = space.artefacts.get_or_create(key, build, {"stage": stage, **meta})
    return as_state(Done(stage, ref, cached))


def as_state(done: Done) -> Done | State[Done]:
    get_run_logger().info("%s: %s %s", done.stage, "cached" if done.cached else "computed", done.ref.key)
    return Completed(name="Cached", message=done.ref.key, data=done) if done.cached else done


def result_of(task: "PrefectTask[..., Any]", *args: Any) -> Done:
    """Runs a stage in this process. By way of its state: called plainly, a task that ends as `Cached` gives that."""
    # Any result might be a coroutine's, to Prefect's types; no stage is one.
    return cast(State[Done], task(*args, return_state=True)).result()
