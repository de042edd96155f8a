"""What a run is asked to read: files of models, tasks from folders of data, and how each task is posed."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bico.adapters.folder import find_expert
from bico.data.base import check_modality
from bico.data.reading import Reading
from bico.data.tasks import check_folders
from bico.errors import ConfigError, nearest
from bico.models.families import get_family
from bico.models.loading import ModelFiles, family_here, resolve
from bico.models.protocol import CLASSLESS, PROBE, TEXT, Model
from flows.config import TransferConfig
from flows.settings import Settings
from storage.checkpoints import content_digest
from tasks.cached_stage import Workspace
from tasks.inputs import OwnHead, TaskRef, open_model, open_split


def find_files(config: TransferConfig, settings: Settings) -> tuple[ModelFiles, ModelFiles]:
    """Files of source and target, once it is known that the expert's are there: names of files tell much, and cost nothing."""
    for place in config.expert_files:
        find_expert(place, settings.allow_pickle)
    source, target = (resolve(ref, settings.allow_pickle) for ref in (config.source, config.target))
    trained = config.expert_head is not None and config.expert_head.is_dir()
    if config.pooling is not None:
        return pooled(source, config.pooling), pooled(target, config.pooling)
    return (pooled(source, "cls", False), pooled(target, "cls", False)) if trained else (source, target)


def pooled(files: ModelFiles, pooling: str, asked: bool = True) -> ModelFiles:
    """A text encoder's files, with how its tokens become features, where its folder does not say.

    Arguments:
        asked: Whether somebody did; else a model that does not pool stays as it is.

    Raises:
        ConfigError: If somebody did of a model that does not pool.
    """
    tell_it: Callable[[ModelFiles, str], ModelFiles] | None
    if (tell_it := getattr(get_family(files.family), "with_pooling", None)) is not None:
        return tell_it(files, pooling)
    if asked:
        raise ConfigError(f"--pooling {pooling}: {files.ref} is no text encoder, which would pool; leave it out.")
    return files


def task_refs(
    names: Sequence[str], data: Sequence[Path], reading: Reading, loss: str | None = None
) -> dict[str, TaskRef]:
    """Returns references to tasks by name.

    Arguments:
        data: The folders that they may be read from.
        reading: What options say of how that is done.
        loss: The loss that was asked for: pairs and completions are read in ways of their own.

    Raises:
        ConfigError: If a folder serves no task, or two have one name.
    """
    folders = tuple(str(folder.expanduser().resolve()) for folder in data)
    check_folders(names, [Path(folder) for folder in folders], reading)
    return {name: TaskRef(name, folders, loss if loss in CLASSLESS else None, reading) for name in names}


def loss_for(loss: str | None, *models: str) -> str | None:
    """The loss that was asked for, or else the only one of a family that is asked for by a folder here, if it has but one.

    Which data are read, and how, depends on it, before a model is.
    """
    if loss is not None:
        return loss
    found = {getattr(family, "only_loss", None) for ref in models if (family := family_here(ref)) is not None}
    return next(iter(found)) if len(found) == 1 else None


_TOLD: set[str] = set()


def tell(*notes: str) -> None:
    """Says on standard error how data were read, once: a plan is made before a run, and again in it."""
    for note in notes:
        if note not in _TOLD:
            print(f"note: {note}", file=sys.stderr, flush=True)
            _TOLD.add(note)


def with_head(space: Workspace, files: ModelFiles, task: TaskRef, path: Path) -> tuple[TaskRef, ModelFiles]:
    """Returns a task whose loss is taken, and accuracy measured, in somebody's own classifier, for one model; and the
    model's files, with those of a classifier that is more than a linear map.

    Raises:
        CheckpointError: If there is no classifier at the path.
        ConfigError: If it has other classes than the task, reads another width, or the loss is of words.
    """
    if task.loss in CLASSLESS:
        raise ConfigError(
            f"--expert-head {path}: loss={task.loss} takes no classifier, since it is of texts and not of classes."
        )
    if task.loss == TEXT:
        raise ConfigError(f"--expert-head {path}: a classifier is no head for loss=text; use loss=probe.")
    if path.is_dir():
        return _with_trained_head(space, files, task, path)
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
    return replace(task, own_head=replace(known, digest=content_digest(path, space.allow_pickle))), files


def _with_trained_head(space: Workspace, files: ModelFiles, task: TaskRef, folder: Path) -> tuple[TaskRef, ModelFiles]:
    """The same with the head in an expert's folder, which the model's family reads."""
    read = getattr(get_family(files.family), "with_classifier", None)
    if read is None:
        raise ConfigError(
            f"--expert-head {folder} is a folder, and {files.ref} takes no head of its library: give the file of a linear "
            "classifier."
        )
    whole, theirs = read(replace(files, allow_pickle=space.allow_pickle), folder)
    ours, given = task.open().class_names, f"--expert-head {folder}"
    if len(theirs) != len(ours):
        raise ConfigError(
            f"{given} has {len(theirs)} classes and task {task.name!r} {len(ours)}: it is of another task."
        )
    places = {name.casefold(): n for n, name in enumerate(theirs)}
    if {name.casefold() for name in ours} == places.keys() and len(places) == len(ours):
        order = tuple(places[name.casefold()] for name in ours)
    elif all(name == f"LABEL_{n}" for n, name in enumerate(theirs)):
        order = tuple(range(len(ours)))
        tell(f"{folder} does not name its classes: they are taken to be {', '.join(ours)}, in this order.")
    else:
        raise ConfigError(
            f"{given} calls its classes {', '.join(theirs)} and task {task.name!r} {', '.join(ours)}: name them alike, by "
            "--class-names or in the id2label of its config.json."
        )
    open_model(whole, space.device)  # a head that cannot be read shows before any work
    return replace(task, own_head=OwnHead(whole, str(folder), f"{whole.digest()} {order}", order)), whole


def pose(task: TaskRef, model: Model, loss: str | None) -> TaskRef:
    """Returns a task with the loss that it is posed in for a model: the family's default, unless one is asked for.

    Raises:
        ConfigError: If the family has no such loss, or the model cannot read the task's examples.
    """
    check_modality(task.open(), model.name, model.modality)
    chosen = loss or model.losses[0]
    if chosen in CLASSLESS and task.loss != chosen:
        raise ConfigError(f"{model.name} reads tasks of another kind: say --loss {chosen}.")
    if chosen not in model.losses:
        raise ConfigError(f"loss={chosen}: {model.name} has no such loss; {nearest(chosen, model.losses)}")
    # A family whose head says it all does not name its loss: its results are known without.
    return replace(task, loss=chosen if len(model.losses) > 1 or chosen in (PROBE, *CLASSLESS) else None)
