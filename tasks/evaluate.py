"""Accuracy of a model, bare, fine-tuned or with a transferred task vector."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.errors import CheckpointError
from bico.evaluation.accuracy import accuracy
from bico.evaluation.linear_head import linear_head_accuracy
from bico.models.loading import ModelFiles
from storage.keys import Ref, artefact_key
from tasks.artefacts import read_linear_head, write_accuracy
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, classifier_for, open_head, open_model, open_split
from tasks.measured import measured_on, under_test
from tasks.retries import RETRIES

VERSION = 1


def evaluate_key(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    limit: int | None = None,
    by_folder: bool = False,
) -> str:
    named = classifier_for(model, task) if by_folder else None
    return artefact_key(
        "evaluate",
        VERSION,
        **measured_on(model, task.identity, weights, alpha, limit),
        **({} if named is None else {"classifier": named.digest}),
    )


@task(name="evaluate", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def evaluate_model(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    limit: int | None = None,
    by_folder: bool = False,
) -> Done | State[Done]:
    """Stores the test accuracy (percent) of a model on a task.

    Arguments:
        weights: A fine-tuned state, a task vector (with a classifier of its own, if it has one), or nothing for the
            model as it is.
        alpha: How much of the task vector is added.
        limit: Only the first so many test samples.
        by_folder: Read with the classifier that lies in the model's folder.

    Raises:
        CheckpointError: If a classifier in the folder is asked for that is not there, or knows other classes.
    """
    named = classifier_for(model, task) if by_folder else None
    if by_folder and named is None:
        raise CheckpointError(f"{model.ref} has no classifier for the classes of {task.name} in its folder.")
    key = evaluate_key(space, model, task, weights, alpha, limit, by_folder)

    def build(out: Path) -> None:
        opened = open_model(model, space.device)
        data = open_split(model, space.device, task, "test")
        told = f"test samples of {task.name}"
        with under_test(model, space.device, weights, alpha, data, limit, "evaluate", told) as advance:
            batches = data.batches(250, limit)
            head = read_linear_head(weights) if named is None else named.for_classes(task.open().class_names)
            if head is None:
                percent = accuracy(opened, batches, open_head(model, space.device, task), on_batch=advance)
            else:
                percent = linear_head_accuracy(opened, batches, head, on_batch=advance)
        write_accuracy(out, percent)

    return run_stage(space, "evaluate", key, build, {"model": model.ref, "task": task.name})
