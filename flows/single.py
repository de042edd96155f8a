"""Two small flows: make one expert, measure one model. What each will do is planned, and checked, before it starts."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from bico.adapters.folder import find_expert
from bico.data.reading import make_reading
from bico.errors import ConfigError, OutputError, at_home
from bico.finetune import FinetuneConfig
from bico.models.loading import ModelFiles, resolve
from bico.models.protocol import CLASSLESS
from flows.measures import MEASURES
from flows.planning.inputs import loss_for, pooled, pose, task_refs, tell, with_head
from flows.planning.plan import check_writable, usual_finetuning
from flows.settings import Settings
from storage.keys import Ref
from tasks.artefacts import expert_file, read_accuracy, read_measures
from tasks.cached_stage import Done, Workspace, result_of
from tasks.evaluate import evaluate_model
from tasks.finetune import adopt_expert, finetune_model, read_expert
from tasks.inputs import TaskRef, classifier_for, open_model
from tasks.probe import probe_model


@dataclass(frozen=True)
class Subject:
    """A model and tasks that it can read."""

    space: Workspace
    model: ModelFiles
    tasks: dict[str, TaskRef]
    notes: tuple[str, ...] = ()
    """What to tell of the expert that stands in for it."""


@dataclass(frozen=True)
class FinetunePlan:
    subject: Subject
    recipe: FinetuneConfig
    out: Path
    """The file that the expert is written to; absolute."""


def plan_finetune(
    model: str,
    task: str,
    data: Sequence[Path],
    changes: dict[str, Any],
    out: Path,
    settings: Settings,
    loss: str | None = None,
    reading: dict[str, Any] | None = None,
    pooling: str | None = None,
) -> FinetunePlan:
    """Resolves what `bico finetune` is asked for.

    Arguments:
        pooling: Of a text encoder whose folder does not say, how tokens become features.
        changes: Settings of fine-tuning that differ from what is usual for a model of this size.
        reading: What options say of how the folder of data is read.

    Raises:
        BicoError: The first thing that cannot work.
    """
    subject = _open(model, [task], data, settings, loss, reading, pooling)
    usual = usual_finetuning(open_model(subject.model, subject.space.device))
    out = at_home(out)
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder: give a file name ending in .safetensors.")
    recipe = replace(usual, **changes)
    check_writable(out.absolute().parent)
    return FinetunePlan(subject, recipe, out.absolute())


def plan_evaluate(
    model: str,
    tasks: Sequence[str],
    data: Sequence[Path],
    expert: Path | None,
    settings: Settings,
    reading: dict[str, Any] | None = None,
    head: Path | None = None,
    loss: str | None = None,
    pooling: str | None = None,
) -> Subject:
    """Resolves what `bico evaluate` is asked for.

    Arguments:
        pooling: Of a text encoder whose folder does not say, how tokens become features.
        loss: The loss that tells how a task is posed: pairs are measured in a way of their own.
        head: A classifier of the model's features, in place of its own head.

    Raises:
        BicoError: The first thing that cannot work.
    """
    if not tasks:
        raise ConfigError("--task names no task.")
    if expert is not None:
        find_expert(expert, settings.allow_pickle)  # names of files tell much, and cost nothing
    subject = _open(model, tasks, data, settings, loss, reading, pooling)
    if head is not None:
        posed = {name: with_head(subject.space, subject.model, task, head) for name, task in subject.tasks.items()}
        (files, *others) = (files for _, files in posed.values())
        if any(other != files for other in others):
            raise ConfigError(f"--expert-head {head} is the head of one task; give one.")
        subject = replace(subject, tasks={name: task for name, (task, _) in posed.items()}, model=files)
    if expert is None:
        return subject
    return replace(subject, notes=read_expert(subject.space, subject.model, str(expert)).notes)


@flow(name="finetune", flow_run_name="{model}-on-{task}", validate_parameters=False)
def finetune_one(
    model: str,
    task: str,
    data: list[Path],
    changes: dict[str, Any],
    out: Path,
    settings: Settings,
    progress: bool = False,
    loss: str | None = None,
    reading: dict[str, Any] | None = None,
    pooling: str | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model on a task, writes what it has changed (the image tower, or the encoder's blocks) and tells the
    expert's test accuracy.
    """
    plan = plan_finetune(model, task, data, changes, out, settings, loss, reading, pooling)
    space, files, posed = plan.subject.space, plan.subject.model, plan.subject.tasks[task]
    done = result_of(finetune_model, space, files, posed, plan.recipe, progress)
    out = plan.out
    shutil.copyfile(expert_file(done.ref), out)
    measured = _measure(plan.subject, posed, done.ref)
    return _result([measured], {"expert": str(out.absolute())}, [done, measured.done])


@flow(name="evaluate", flow_run_name="{model}", validate_parameters=False)
def evaluate_one(
    model: str,
    tasks: list[str],
    data: list[Path],
    expert: Path | None,
    limit: int | None,
    settings: Settings,
    reading: dict[str, Any] | None = None,
    head: Path | None = None,
    loss: str | None = None,
    pooling: str | None = None,
) -> dict[str, Any]:
    """Measures a model, or an expert of it, on tasks: by its own head, or of text by a probe on all training samples."""
    subject = plan_evaluate(model, tasks, data, expert, settings, reading, head, loss, pooling)
    for note in subject.notes:
        get_run_logger().info(note)
    weights = None if expert is None else result_of(adopt_expert, subject.space, subject.model, str(expert)).ref
    measured = [_measure(subject, task, weights, limit) for task in subject.tasks.values()]
    return _result(measured, {}, [one.done for one in measured])


@dataclass(frozen=True)
class Measured:
    """One task's accuracy, and what gave it."""

    task: str
    by: str
    """What turned features into classes: the model's own head, a probe, or the classifier in its folder; of pairs the measure."""
    done: Done
    all: dict[str, float] = field(default_factory=dict)
    """Where there are several measures, all of them."""


def _measure(subject: Subject, task: TaskRef, weights: Ref | None, limit: int | None = None) -> Measured:
    """By the classifier in the model's folder, if there is one for the task; else by a probe, or the model's own head."""
    space, files = subject.space, subject.model
    if task.loss in CLASSLESS:
        done = result_of(MEASURES[task.loss], space, files, task, weights, 1.0, limit)
        return Measured(task.name, read_measures(done.ref).name, done, read_measures(done.ref).all)
    if task.own_head is not None:
        done = result_of(evaluate_model, space, files, task, weights, 1.0, limit)
        return Measured(task.name, "the classifier that was given", done)
    if weights is None and classifier_for(files, task) is not None:
        return Measured(
            task.name, "classifier in the folder", result_of(evaluate_model, space, files, task, None, 1.0, limit, True)
        )
    if open_model(files, space.device).probed:
        done = result_of(probe_model, space, files, task, weights, 1.0, None, limit)
        return Measured(task.name, "probe on all training samples", done)
    return Measured(task.name, "own head", result_of(evaluate_model, space, files, task, weights, 1.0, limit))


def _open(
    model: str,
    tasks: Sequence[str],
    data: Sequence[Path],
    settings: Settings,
    loss: str | None = None,
    reading: dict[str, Any] | None = None,
    pooling: str | None = None,
) -> Subject:
    loss = loss_for(loss, model)
    refs = task_refs(tasks, data, make_reading(reading or {}, "options"), loss)
    files = resolve(model, settings.allow_pickle)
    files = files if pooling is None else pooled(files, pooling)
    for ref in refs.values():
        tell(*ref.open().notes)
    check_writable(settings.home)
    space = Workspace(settings.store, settings.resolved_device(), allow_pickle=settings.allow_pickle)
    opened = open_model(files, space.device)
    return Subject(space, files, {name: pose(ref, opened, loss) for name, ref in refs.items()})


def _result(measured: list[Measured], outputs: dict[str, Any], stages: list[Done]) -> dict[str, Any]:
    return {
        "rows": [
            {"task": one.task, "accuracy": read_accuracy(one.done.ref), "by": one.by}
            | ({"measures": one.all} if one.all else {})
            for one in measured
        ],
        "outputs": outputs,
        "stages": {"computed": sum(not d.cached for d in stages), "cached": sum(d.cached for d in stages)},
    }
