"""How well a model, bare, fine-tuned or with a transferred task vector, orders or finds pairs of texts."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.evaluation.pairs import measure_pairs
from bico.models.loading import ModelFiles
from storage.keys import Ref, artefact_key
from tasks.artefacts import write_measures
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_model, open_split
from tasks.measured import measured_on, under_test
from tasks.retries import RETRIES

VERSION = 1


def pairs_key(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    limit: int | None = None,
) -> str:
    return artefact_key("measure-pairs", VERSION, **measured_on(model, task.open().identity, weights, alpha, limit))


@task(name="measure-pairs", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def measure_model(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    limit: int | None = None,
) -> Done | State[Done]:
    """Stores a model's measures on the test pairs of a task, in percent.

    Arguments:
        weights: A fine-tuned state, a task vector, or nothing for the model as it is.
        alpha: How much of the task vector is added.
        limit: Only the first so many test pairs.
    """
    key = pairs_key(space, model, task, weights, alpha, limit)

    def build(out: Path) -> None:
        opened, data = open_model(model, space.device), open_split(model, space.device, task, "test")
        told = f"test pairs of {task.name}"
        with under_test(model, space.device, weights, alpha, data, limit, "measure", told) as advance:
            measures = measure_pairs(opened, data.batches(250, limit), on_batch=advance)
        write_measures(out, measures)

    return run_stage(space, "measure-pairs", key, build, {"model": model.ref, "task": task.name})
