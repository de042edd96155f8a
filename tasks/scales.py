"""Collect how large what the sites of one model read and give is: what the strength of a transfer is found from."""

from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.calibration.covariances import split_at
from bico.calibration.scales import Side, signal_scales
from storage.keys import artefact_key
from tasks.artefacts import write_scales
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.calibration import Calibration
from tasks.inputs import open_head, open_model, open_split
from tasks.retries import RETRIES

VERSION = 1


def scales_key(calibration: Calibration, side: Side) -> str:
    """The other model has no part in it: every pair that this one is part of shares the artefact."""
    return artefact_key("collect-scales", VERSION, model=calibration.model(side).digest(), **calibration.identity)


@task(
    name="collect-scales",
    task_run_name="collect-scales {calibration.task.name} {side} seed={calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def collect_scales(space: Workspace, calibration: Calibration, side: Side) -> Done | State[Done]:
    """Stores the scales at every budget: one forward pass."""
    files, device = calibration.model(side), space.device

    def build(out: Path) -> None:
        data = open_split(files, device, calibration.task, "train")
        head = open_head(files, device, calibration.task, calibration.head_indices)
        indices, count_of = torch.tensor(calibration.indices), {size: n for n, size in calibration.counts.items()}
        batches = (data.batch(indices[part]) for part in split_at(len(indices), calibration.batch_size, count_of))
        found = dict(signal_scales(open_model(files, device), batches, head, list(count_of)))
        write_scales(out, {count_of[size]: scales for size, scales in found.items()})

    meta = {"model": files.ref, "task": calibration.task.about, "seed": calibration.seed}
    return run_stage(space, "collect-scales", scales_key(calibration, side), build, meta)
