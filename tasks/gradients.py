"""Collect the target's parameter gradients on the calibration samples: the evidence of GradFix and few-shot."""

from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from torch import Tensor

from bico.calibration.covariances import split_at
from bico.calibration.parameter_gradients import ParameterGradient, parameter_gradients
from storage.keys import artefact_key
from tasks.artefacts import write_parameter_gradients
from tasks.cached_stage import Done, Workspace, as_state
from tasks.calibration import Calibration
from tasks.inputs import open_head, open_model, open_split
from tasks.retries import RETRIES

VERSION = 1


def gradients_key(calibration: Calibration, kind: ParameterGradient) -> str:
    """The source has no part in it: every pair with this target shares the artefact."""
    return artefact_key(
        "collect-parameter-gradients",
        VERSION,
        target=calibration.target.digest(),
        kind=kind,
        **calibration.identity,
    )


@task(
    name="collect-parameter-gradients",
    task_run_name="collect-parameter-gradients {calibration.task.name} seed={calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def collect_parameter_gradients(
    space: Workspace, calibration: Calibration, kinds: tuple[ParameterGradient, ...]
) -> Done | State[Done]:
    """Stores statistics of all parameters' gradients, each an artefact of its own; one pass makes all missing ones."""
    keys = {gradients_key(calibration, kind): kind for kind in kinds}
    files, device = calibration.target, space.device

    def build(folders: dict[str, Path]) -> None:
        data = open_split(files, device, calibration.task, "train")
        head = open_head(files, device, calibration.task, calibration.head_indices)
        indices = torch.tensor(calibration.indices)
        count_of = {size: count for count, size in calibration.counts.items()}
        snapshots = list(count_of)
        targets = calibration.targets(space)
        parts = split_at(len(indices), calibration.batch_size, snapshots)
        batches = (_batch(data.batch(indices[part]), None if targets is None else targets[part]) for part in parts)
        missing = {keys[key]: folder for key, folder in folders.items()}
        for size, gathered in parameter_gradients(open_model(files, device), batches, head, missing, snapshots):
            for kind, folder in missing.items():
                about = calibration.drawn | {"indices": calibration.indices[:size]}
                write_parameter_gradients(folder, count_of[size], gathered[kind], about)

    meta = {
        "target": files.ref,
        "task": calibration.task.about,
        "seed": calibration.seed,
        "samples": list(calibration.counts),
    }
    made = space.artefacts.get_or_create_many(keys, build, meta)
    ref, _ = made[gradients_key(calibration, kinds[0])]
    return as_state(Done("collect-parameter-gradients", ref, all(cached for _, cached in made.values())))


def _batch(labelled: tuple[Tensor, Tensor], targets: Tensor | None) -> tuple[Tensor, Tensor]:
    return labelled if targets is None else (labelled[0], targets)
