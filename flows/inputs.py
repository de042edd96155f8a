"""What a run is asked to read: files of models, tasks from folders of data, and how each task is posed."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bico.adapters.folder import find_expert
from bico.data.base import check_modality
from bico.data.reading import Reading
from bico.data.tasks import check_folders
from bico.errors import ConfigError, nearest
from bico.models.loading import ModelFiles, resolve
from bico.models.protocol import PAIRS, PROBE, TEXT, Model
from flows.config import Settings, TransferConfig
from storage.checkpoints import content_digest
from tasks.cached_stage import Workspace
from tasks.inputs import OwnHead, TaskRef, open_model, open_split


def find_files(config: TransferConfig, settings: Settings) -> tuple[ModelFiles, ModelFiles]:
    """Files of source and target, once it is known that the expert's are there: names of files tell much, and cost nothing."""
    if config.expert is not None:
        find_expert(config.expert, settings.allow_pickle)
    source, target = (resolve(ref, settings.allow_pickle) for ref in (config.source, config.target))
    return source, target


def task_refs(
    names: Sequence[str], data: Sequence[Path], reading: Reading, loss: str | None = None
) -> dict[str, TaskRef]:
    """Returns references to tasks by name.

    Arguments:
        data: The folders that they may be read from.
        reading: What options say of how that is done.
        loss: The loss that was asked for: pairs are read in a way of their own.

    Raises:
        ConfigError: If a folder serves no task, or two have one name.
    """
    folders = tuple(str(folder.expanduser().resolve()) for folder in data)
    check_folders(names, [Path(folder) for folder in folders], reading)
    return {name: TaskRef(name, folders, PAIRS if loss == PAIRS else None, reading) for name in names}


_TOLD: set[str] = set()


def tell(*notes: str) -> None:
    """Says on standard error how data were read, once: a plan is made before a run, and again in it."""
    for note in notes:
        if note not in _TOLD:
            print(f"note: {note}", file=sys.stderr, flush=True)
            _TOLD.add(note)


def with_head(space: Workspace, files: ModelFiles, task: TaskRef, path: Path) -> TaskRef:
    """Returns a task whose loss is taken, and accuracy measured, in somebody's own classifier, for one model.

    Raises:
        CheckpointError: If the file holds no classifier.
        ConfigError: If it has other classes than the task, reads another width, or the loss is of words.
    """
    if task.loss == PAIRS:
        raise ConfigError(f"--expert-head {path}: pairs of texts have no classes, so loss=pairs takes no classifier.")
    if task.loss == TEXT:
        raise ConfigError(f"--expert-head {path}: a classifier is no head for loss=text; use loss=probe.")
    known = OwnHead(replace(files, allow_pickle=space.allow_pickle), str(path), "")
    head, classes = known.read(), len(task.open().class_names)
    if head.weight.shape[1] != classes:
        raise ConfigError(
            f"--expert-head {path} has {head.weight.shape[1]} classes and task {task.name!r} {classes}: its rows must be "
            "the task's classes, in their order."
        )
    inputs, _ = open_split(files, space.device, task, "train").batch(torch.tensor([0]))
    width = open_model(files, space.device).features(inputs).shape[1]
    if head.weight.shape[0] != width:
        raise ConfigError(
            f"--expert-head {path} reads {head.weight.shape[0]} features and {files.ref} gives {width}: it must be a "
            "classifier of the features behind the projection, before they are normalised."
        )
    return replace(task, own_head=replace(known, digest=content_digest(path, space.allow_pickle)))


def pose(task: TaskRef, model: Model, loss: str | None) -> TaskRef:
    """Returns a task with the loss that it is posed in for a model: the family's default, unless one is asked for.

    Raises:
        ConfigError: If the family has no such loss, or the model cannot read the task's examples.
    """
    check_modality(task.open(), model.name, model.modality)
    chosen = loss or model.losses[0]
    if chosen not in model.losses:
        raise ConfigError(f"loss={chosen}: {model.name} has no such loss; {nearest(chosen, model.losses)}")
    # A family whose head says it all does not name its loss: its results are known without.
    return replace(task, loss=chosen if len(model.losses) > 1 or chosen == PROBE else None)
