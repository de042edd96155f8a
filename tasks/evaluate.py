"""Accuracy of a model, bare, fine-tuned or with a transferred task vector."""

import json
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.evaluation.accuracy import accuracy
from bico.evaluation.linear_head import linear_head_accuracy
from bico.models.loading import ModelFiles
from storage.artefacts import folder_of
from storage.checkpoints import load_state
from storage.keys import artefact_key
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.finetune import task_vector_of
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tasks.last_steps import read_linear_head
from tasks.progress import reported
from tasks.retries import RETRIES
from tasks.transfer import VECTOR

VERSION = 1
METRICS = "metrics.json"


@task(name="evaluate", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def evaluate_model(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Done | None,
    alpha: float = 1.0,
    limit: int | None = None,
) -> Done | State[Done]:
    """Stores the test accuracy (percent) of a model on a task.

    Arguments:
        weights: A fine-tuned image tower, a task vector (with a classifier of its own, if it has one), or nothing for the
            model as it is.
        alpha: How much of the task vector is added.
        limit: Only the first so many test samples.
    """
    key = artefact_key(
        "evaluate",
        VERSION,
        model=model.digest(),
        task=task.identity,
        weights=None if weights is None else weights.ref,
        alpha=alpha,
        limit=limit,
    )

    def build(out: Path) -> None:
        opened = open_model(model, space.device)
        data = open_split(model, space.device, task, "test")
        tested = len(data) if limit is None else min(limit, len(data))
        with (
            reported("evaluate", f"test samples of {task.name}", tested) as advance,
            opened.updated(read_vector(weights, opened.state()), alpha),
        ):
            batches, linear_head = data.batches(250, limit), read_linear_head(weights)
            if linear_head is None:
                percent = accuracy(opened, batches, open_head(model, space.device, task), on_batch=advance)
            else:
                percent = linear_head_accuracy(opened, batches, linear_head, on_batch=advance)
        (out / METRICS).write_text(json.dumps({"accuracy": percent}))

    return run_stage(space, "evaluate", key, build, {"model": model.ref, "task": task.name})


def read_accuracy(done: Done) -> float:
    return json.loads((folder_of(done.ref) / METRICS).read_text())["accuracy"]


def read_vector(weights: Done | None, state: dict) -> dict:
    """Returns what a stage's weights add to a model: a task vector, a fine-tuned tower less the model, or nothing."""
    if weights is None:
        return {}
    if (file := folder_of(weights.ref) / VECTOR).exists():
        return load_state(file)
    return task_vector_of(weights.ref, state)
