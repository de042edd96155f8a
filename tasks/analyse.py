"""Analyses of models and maps as cached stages, each leaving one file of measurements."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.analysis import Measurement, compare_signals, describe_map, input_drift, output_similarity
from bico.analysis.maps import POINTS
from bico.analysis.records import layer_of_tensors
from bico.calibration.budget import Budget
from bico.calibration.covariances import Batch
from bico.calibration.pairing import met_at
from bico.calibration.signals import Signal
from bico.finetune import FinetuneConfig, finetune
from bico.models.loading import ModelFiles
from bico.task_vector import subtract
from storage.keys import Ref, artefact_key
from tasks.artefacts import (
    array_name,
    iterate_maps,
    read_checkpoint,
    read_update,
    write_checkpoint,
    write_measurements,
)
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tasks.maps import SignalMaps, StoredMaps
from tasks.retries import RETRIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 1
BATCH = 32


@task(name="compare-inputs", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def compare_inputs(
    space: Workspace,
    source: ModelFiles,
    target: ModelFiles,
    task: TaskRef,
    split: str,
    indices: Sequence[int],
    parts: list[SignalMaps],
    budget: Budget,
) -> Done | State[Done]:
    """Stores CKA and cosine of two models' layer inputs, before and after the maps.

    Arguments:
        split: "train" or "test".
        indices: Samples of the split to measure on.
        parts: The solved maps of the inputs, all by one rule.
        budget: Calibration samples of the maps.
    """
    key = artefact_key(
        "compare-inputs",
        VERSION,
        source=source.digest(),
        target=target.digest(),
        task=task.identity,
        split=split,
        indices=list(indices),
        maps=sorted(part.key for part in parts),
        samples=budget.asked,
    )

    def batches() -> Iterator[Batch]:
        ours, theirs = (open_split(files, space.device, task, split) for files in (source, target))
        for part in torch.tensor(indices).split(BATCH):
            yield Batch(ours.batch(part)[0], *theirs.batch(part))

    def build(out: Path) -> None:
        ours, theirs = (open_model(files, space.device) for files in (source, target))
        heads = open_head(source, space.device, task), open_head(target, space.device, task)
        maps, rule = StoredMaps(space, parts, budget), parts[0].rule
        write_measurements(out, compare_signals(ours, theirs, batches(), heads, lambda key: maps(key, rule).matrix))

    return run_stage(space, "compare-inputs", key, build, {"task": task.name, "split": split})


@task(name="compare-outputs", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def compare_outputs(
    space: Workspace,
    target: ModelFiles,
    task: TaskRef,
    oracle: Ref,
    weights: Ref | None,
    series: str,
    alpha: float,
    limit: int,
) -> Done | State[Done]:
    """Stores the cosine of a model's layer outputs to those of the fine-tuned target, on the first test samples.

    Arguments:
        oracle: The fine-tuned target.
        weights: A task vector, or nothing for the target as it is.
        series: What it is called.
        alpha: How much of the task vector is added.
        limit: Test samples to measure on.
    """
    key = artefact_key(
        "compare-outputs",
        VERSION,
        target=target.digest(),
        task=task.identity,
        oracle=oracle,
        weights=weights,
        series=series,
        alpha=alpha,
        limit=limit,
    )

    def build(out: Path) -> None:
        model = open_model(target, space.device)
        reference, vector = (read_update(ref, model.state()) for ref in (oracle, weights))
        batches = open_split(target, space.device, task, "test").batches(BATCH, limit)
        head = open_head(target, space.device, task)
        write_measurements(out, output_similarity(model, reference, vector, batches, head, series, alpha))

    return run_stage(space, "compare-outputs", key, build, {"task": task.name, "series": series})


@task(name="trace-fine-tuning", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def trace_finetuning(
    space: Workspace, model: ModelFiles, task: TaskRef, config: FinetuneConfig, steps: Sequence[int]
) -> Done | State[Done]:
    """Stores the image tower as it is after each of `steps` optimiser steps: as many checkpoints."""
    key = artefact_key(
        "trace-fine-tuning", VERSION, model=model.digest(), task=task.identity, config=config, steps=list(steps)
    )

    def build(out: Path) -> None:
        data, opened = open_split(model, space.device, task, "train"), open_model(model, space.device)
        head = open_head(model, space.device, task)

        def keep(step: int, state: dict, _loss: float) -> None:
            if step in steps:
                write_checkpoint(out, step, state)

        finetune(opened, data.batch, len(data), head, config, on_step=keep)

    return run_stage(space, "trace-fine-tuning", key, build, {"model": model.ref, "task": task.name})


@task(name="measure-drift", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def measure_drift(
    space: Workspace, model: ModelFiles, task: TaskRef, trajectory: Ref, steps: Sequence[int], limit: int
) -> Done | State[Done]:
    """Stores how far layer inputs have moved at each step of a trajectory, on the first test samples.

    Arguments:
        trajectory: From `trace_finetuning`, of the same model.
        limit: Test samples to measure on.
    """
    key = artefact_key(
        "measure-drift",
        VERSION,
        model=model.digest(),
        task=task.identity,
        trajectory=trajectory,
        steps=list(steps),
        limit=limit,
    )

    def build(out: Path) -> None:
        opened, head = open_model(model, space.device), open_head(model, space.device, task)
        data = open_split(model, space.device, task, "test")
        start = {name: tensor.cpu() for name, tensor in opened.state().items()}
        found = []
        for step in steps:
            vector = subtract(read_checkpoint(trajectory, step), start)
            found += input_drift(opened, vector, step, data.batches(BATCH, limit), head)
        write_measurements(out, found)

    return run_stage(space, "measure-drift", key, build, {"model": model.ref, "task": task.name})


@task(name="describe-maps", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def describe_maps(space: Workspace, target: ModelFiles, parts: list[SignalMaps]) -> Done | State[Done]:
    """Stores rank, spectrum and kept geometry of solved maps, at every sample count."""
    key = artefact_key("describe-maps", VERSION, maps=[part.key for part in parts], points=POINTS)

    def build(out: Path) -> None:
        at = layer_of_tensors(open_model(target, space.device).sites, list(Signal))
        found = []
        for part in parts:
            places = [(tensor, count) for tensor in part.tensors for count in part.counts]
            names = [array_name(tensor, part.signal, count) for tensor, count in places]
            solved = iterate_maps(space.artefacts.ref(part.key), names)
            for (tensor, count), (_, one) in zip(places, solved, strict=True):
                found += describe_map(
                    one.matrix, one.spectrum, one.rank, tensor, part.signal, at[met_at(tensor)], count
                )
        write_measurements(out, found)

    return run_stage(space, "describe-maps", key, build, {"maps": len(parts)})


def write_figure(out: Path, name: str, records: Iterable[Measurement], figure: "Figure") -> dict[str, Path]:
    """Writes a figure as PNG and the numbers in it as CSV, a line per measurement.

    Returns:
        The two files, by kind: "png" and "csv".
    """
    out = out.expanduser().absolute()
    files = {kind: out / f"{name}.{kind}" for kind in ("png", "csv")}
    figure.savefig(files["png"], dpi=150)
    with files["csv"].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=[field.name for field in fields(Measurement)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
    return files
