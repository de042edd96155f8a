"""How well a model, bare, fine-tuned or with a transferred task vector, completes texts."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.evaluation.completions import measure_completions
from bico.models.loading import ModelFiles
from storage.keys import Ref, artefact_key
from tasks.artefacts import write_measures
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_model
from tasks.measured import measured_on, tested, under_test
from tasks.retries import RETRIES

VERSION = 1
BATCH = 16
"""Examples that are read at once; few, since each comes with scores of the whole vocabulary."""


def completions_key(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    limit: int | None = None,
) -> str:
    return artefact_key(
        "measure-completions", VERSION, **measured_on(model, task.open().identity, weights, alpha, limit)
    )


@task(name="measure-completions", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def measure_model(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    limit: int | None = None,
) -> Done | State[Done]:
    """Stores a model's measures on the completions of a task's test split.

    Arguments:
        weights: A fine-tuned state, a task vector, or nothing for the model as it is.
        alpha: How much of the task vector is added.
        limit: Only the first so many test examples.
    """
    key = completions_key(space, model, task, weights, alpha, limit)

    def build(out: Path) -> None:
        opened, data = open_model(model, space.device), task.open().open("test")
        batches = ([data.example(row) for row in rows] for rows in _parts(tested(data, limit)))
        told = f"test completions of {task.name}"
        with under_test(model, space.device, weights, alpha, data, limit, "measure", told) as advance:
            measures = measure_completions(opened, batches, task.open().class_names, on_batch=advance)
        write_measures(out, measures)

    return run_stage(space, "measure-completions", key, build, {"model": model.ref, "task": task.name})


def _parts(count: int) -> list[range]:
    return [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
