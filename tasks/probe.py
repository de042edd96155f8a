"""Accuracy of a linear probe on a model, bare, fine-tuned or with a transferred task vector."""

from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.evaluation.probe import fit_probe, probe_accuracy
from bico.models.loading import ModelFiles
from storage.keys import Ref, artefact_key
from tasks.artefacts import read_update, write_accuracy
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_model, open_split, read_features
from tasks.measured import measured_on
from tasks.retries import RETRIES

VERSION = 1


def probe_key(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    indices: Sequence[int] | None = None,
    limit: int | None = None,
) -> str:
    return artefact_key(
        "probe",
        VERSION,
        **measured_on(model, task.open().identity, weights, alpha, limit),
        indices=None if indices is None else list(indices),
    )


@task(name="probe", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def probe_model(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float = 1.0,
    indices: Sequence[int] | None = None,
    limit: int | None = None,
) -> Done | State[Done]:
    """Stores the test accuracy (percent) of a probe on a model's features.

    Arguments:
        weights: Fine-tuned parameters, a task vector, or nothing for the model as it is.
        alpha: How much of the task vector is added.
        indices: The training samples that the probe is fitted on; all, unless given.
        limit: Only the first so many test samples.
    """
    key = probe_key(space, model, task, weights, alpha, indices, limit)

    def build(out: Path) -> None:
        opened, classes = open_model(model, space.device), len(task.open().class_names)
        train, test = (open_split(model, space.device, task, split) for split in ("train", "test"))
        with opened.updated(read_update(weights, opened.state()), alpha):
            probe = fit_probe(*read_features(opened, train, indices), classes)
            percent = probe_accuracy(opened, test.batches(250, limit), probe)
        write_accuracy(out, percent)

    return run_stage(space, "probe", key, build, {"model": model.ref, "task": task.name})
