"""What every cached step shares: a key, a build, and the word "Cached" when there was nothing to do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from prefect import Task as PrefectTask
from prefect import get_run_logger
from prefect.client.schemas import State
from prefect.states import Completed

from bico.data.tasks import Prepared, Task, get_task
from bico.errors import StoreError
from bico.models.base import PROBE, Model
from bico.models.loading import ModelFiles, load
from bico.probe import as_head, fit_probe
from bico.readout import read
from storage.artefacts import ArtefactStore, open_store
from storage.keys import Ref
from storage.upkeep import note_run


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
class TaskRef:
    """A task by name, with the folders that `--data` named, and how it is posed."""

    name: str
    folders: tuple[str, ...] = ()
    loss: str | None = None
    """Of text, the loss whose gradients are taken; of pictures there is one only."""

    def open(self) -> Task:
        return get_task(self.name, [Path(folder) for folder in self.folders])

    @property
    def identity(self) -> dict[str, object]:
        """What determines a loss on this task: for keys."""
        return self.open().identity | ({} if self.loss is None else {"loss": self.loss})


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


def result_of(task: PrefectTask, *args: Any) -> Done:
    """Runs a stage in this process. By way of its state: called plainly, a task that ends as `Cached` gives that."""
    return task(*args, return_state=True).result()


@cache
def open_model(files: ModelFiles, device: str) -> Model:
    """Loads a model once per process."""
    return load(files, torch.device(device))


@cache
def open_head(files: ModelFiles, device: str, task: TaskRef, indices: tuple[int, ...] | None = None) -> torch.Tensor:
    """The head in which the task's loss is taken.

    Arguments:
        indices: Training samples from which a head that has to be fitted is fitted; all, unless given.
    """
    opened, model = task.open(), open_model(files, device)
    if task.loss != PROBE:
        return model.head(opened.class_names, opened.prompts)
    data = open_split(files, device, task, "train")
    return as_head(fit_probe(*read_features(model, data, indices), len(opened.class_names)))


def read_features(
    model: Model, data: Prepared, indices: Sequence[int] | None = None, batch: int = 250
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (samples, features) and labels (samples,) of some samples of a split, or of all."""
    chosen = torch.arange(len(data)) if indices is None else torch.tensor(indices)
    features = read(model, (data.batch(part)[0] for part in chosen.split(batch))).features
    return features, data.split.labels[chosen].to(features.device)


@cache
def open_split(files: ModelFiles, device: str, task: TaskRef, split: str) -> Prepared:
    """A split as one model wants it, preprocessed once per process."""
    model = open_model(files, device)
    return Prepared(task.open().open(split), model.prepare, model.stack)
