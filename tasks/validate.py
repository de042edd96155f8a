"""Accuracy on held-out training samples, by which the model to write is chosen."""

from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.data.tasks import Prepared
from bico.evaluation.accuracy import accuracy
from bico.evaluation.completions import measure_completions
from bico.evaluation.held_out import HeldOut, cross_validated
from bico.evaluation.linear_head import linear_head_accuracy
from bico.evaluation.pairs import measure_pairs
from bico.evaluation.probe import fit_probe, probe_accuracy
from bico.models.loading import ModelFiles
from bico.models.protocol import COMPLETION, PAIRS
from storage.keys import Ref, artefact_key
from tasks.artefacts import read_linear_head, write_accuracy
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_head, open_model, open_split, open_update, read_features
from tasks.retries import RETRIES

VERSION = 1


def validate_key(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float,
    held: HeldOut,
    probe: tuple[int, ...] | None = None,
) -> str:
    return artefact_key(
        "validate",
        VERSION,
        model=model.digest(),
        task=task.identity,
        weights=weights,
        alpha=alpha,
        rows=list(held.rows),
        unseen=held.unseen,
        probe=None if probe is None else list(probe),
    )


@task(name="validate", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def validate_model(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    alpha: float,
    held: HeldOut,
    probe: tuple[int, ...] | None = None,
) -> Done | State[Done]:
    """Stores how well a model does on held-out training samples, in percent, measured as its row is measured; where the
    samples are calibration samples, by cross-validated probes instead, as labels that were learnt from prove nothing.

    Arguments:
        weights: A task vector (with a classifier of its own, if it has one), or nothing for the model as it is.
        alpha: How much of the task vector is added.
        held: The rows of the training split that judge.
        probe: Training samples that a probe is fitted on, where models are measured by probes.
    """
    key = validate_key(space, model, task, weights, alpha, held, probe)

    def build(out: Path) -> None:
        opened, data = open_model(model, space.device), open_split(model, space.device, task, "train")
        with opened.updated(open_update(model, space.device, weights), alpha):
            write_accuracy(out, _score(space, model, task, weights, data, held, probe))

    return run_stage(space, "validate", key, build, {"model": model.ref, "task": task.name})


def _score(
    space: Workspace,
    model: ModelFiles,
    task: TaskRef,
    weights: Ref | None,
    data: Prepared,
    held: HeldOut,
    probe: tuple[int, ...] | None,
) -> float:
    opened = open_model(model, space.device)
    batches = (data.batch(rows) for rows in torch.tensor(held.rows).split(250))
    if task.loss == PAIRS:  # neither these nor completions have classes that a probe could tell
        return measure_pairs(opened, batches).value
    if task.loss == COMPLETION:
        examples = ([data.split.example(row) for row in held.rows[at : at + 8]] for at in range(0, len(held.rows), 8))
        return measure_completions(opened, examples, task.open().class_names).value
    classes = len(task.open().class_names)
    if not held.unseen:
        return cross_validated(*read_features(opened, data, held.rows), classes, opened.name)
    if (head := read_linear_head(weights)) is not None:
        return linear_head_accuracy(opened, batches, head)
    if probe is not None:
        return probe_accuracy(opened, batches, fit_probe(*read_features(opened, data, probe), classes))
    return accuracy(opened, batches, open_head(model, space.device, task))
