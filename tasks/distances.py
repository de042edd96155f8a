"""How far each training sample lies from the centroid of its class, in a model's feature space."""

from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.calibration.sampling import centroid_distances
from bico.models.loading import ModelFiles
from storage.keys import artefact_key
from tasks.artefacts import write_distances
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_model, open_split
from tasks.retries import RETRIES

VERSION = 1


def distances_key(space: Workspace, model: ModelFiles, task: TaskRef) -> str:
    return artefact_key("class-distances", VERSION, model=model.digest(), task=task.open().identity)


@task(
    name="class-distances",
    task_run_name="class-distances {task.name}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def class_distances(space: Workspace, model: ModelFiles, task: TaskRef) -> Done | State[Done]:
    """Stores the distances of all training samples: what centroid sampling goes by."""
    key = distances_key(space, model, task)

    def build(out: Path) -> None:
        opened, data = open_model(model, space.device), open_split(model, space.device, task, "train")
        with torch.no_grad():
            features = torch.cat([opened.features(inputs).cpu() for inputs, _ in data.batches(250)])
        write_distances(out, centroid_distances(features, data.split.labels))

    return run_stage(space, "class-distances", key, build, {"model": model.ref, "task": task.name})
