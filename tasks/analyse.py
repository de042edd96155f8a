"""Analyses of models and maps as cached stages, each leaving one file of measurements."""

import csv
import json
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
from bico.analysis.records import layers
from bico.calibration.covariances import Batch
from bico.calibration.signals import Signal
from bico.finetune import FinetuneConfig, finetune
from bico.models.loading import ModelFiles
from bico.task_vector import subtract
from storage.arrays import read_arrays, read_attrs
from storage.checkpoints import load_state, save_state
from storage.keys import artefact_key
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.evaluate import read_vector
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tasks.maps import StoredMaps
from tasks.names import array_name
from tasks.procrustes import SignalMaps
from tasks.retries import RETRIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 1
RECORDS = "measurements.json"
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
    samples: int,
) -> Done | State[Done]:
    """Stores CKA and cosine of two models' layer inputs, before and after the maps.

    Arguments:
        split: "train" or "test".
        indices: Samples of the split to measure on.
        parts: The solved maps of the inputs, all of one completion.
        samples: Calibration samples of the maps.
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
        samples=samples,
    )

    def batches() -> Iterator[Batch]:
        ours, theirs = (open_split(files, space.device, task, split) for files in (source, target))
        for part in torch.tensor(indices).split(BATCH):
            yield Batch(ours.batch(part)[0], *theirs.batch(part))

    def build(out: Path) -> None:
        models = [open_model(files, space.device) for files in (source, target)]
        heads = tuple(open_head(files, space.device, task) for files in (source, target))
        maps, completion = StoredMaps(space, parts, samples), parts[0].completion
        _write(out, compare_signals(*models, batches(), heads, lambda key: maps(key, completion)))

    return run_stage(space, "compare-inputs", key, build, {"task": task.name, "split": split})


@task(name="compare-outputs", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def compare_outputs(
    space: Workspace,
    target: ModelFiles,
    task: TaskRef,
    oracle: Done,
    weights: Done | None,
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
        oracle=oracle.ref,
        weights=None if weights is None else weights.ref,
        series=series,
        alpha=alpha,
        limit=limit,
    )

    def build(out: Path) -> None:
        model = open_model(target, space.device)
        reference, vector = (read_vector(done, model.state()) for done in (oracle, weights))
        batches = open_split(target, space.device, task, "test").batches(BATCH, limit)
        head = open_head(target, space.device, task)
        _write(out, output_similarity(model, reference, vector, batches, head, series, alpha))

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
                save_state(_checkpoint(out, step), state)

        finetune(opened, data.batch, len(data), head, config, on_step=keep)

    return run_stage(space, "trace-fine-tuning", key, build, {"model": model.ref, "task": task.name})


@task(name="measure-drift", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def measure_drift(
    space: Workspace, model: ModelFiles, task: TaskRef, trajectory: Done, steps: Sequence[int], limit: int
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
        trajectory=trajectory.ref,
        steps=list(steps),
        limit=limit,
    )

    def build(out: Path) -> None:
        opened, head = open_model(model, space.device), open_head(model, space.device, task)
        data = open_split(model, space.device, task, "test")
        start = {name: tensor.cpu() for name, tensor in opened.state().items()}
        found = []
        for step in steps:
            vector = subtract(load_state(_checkpoint(trajectory.ref.path, step)), start)
            found += input_drift(opened, vector, step, data.batches(BATCH, limit), head)
        _write(out, found)

    return run_stage(space, "measure-drift", key, build, {"model": model.ref, "task": task.name})


@task(name="describe-maps", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def describe_maps(space: Workspace, target: ModelFiles, parts: list[SignalMaps]) -> Done | State[Done]:
    """Stores rank, spectrum and kept geometry of solved maps, at every sample count."""
    key = artefact_key("describe-maps", VERSION, maps=[part.key for part in parts], points=POINTS)

    def build(out: Path) -> None:
        at = layers(open_model(target, space.device).sites, list(Signal))
        found = []
        for part in parts:
            folder = space.artefacts.ref(part.key).path / "maps"
            ranks = read_attrs(folder)["ranks"]
            for tensor in part.tensors:
                for samples in part.samples:
                    name = array_name(tensor, part.signal, samples)
                    stored = read_arrays(folder, [f"{name}/map", f"{name}/spectrum"])
                    solved = stored[f"{name}/map"], stored[f"{name}/spectrum"], ranks[name]
                    found += describe_map(*solved, tensor, part.signal, at[tensor], samples)
        _write(out, found)

    return run_stage(space, "describe-maps", key, build, {"maps": len(parts)})


def read_measurements(done: Done) -> list[Measurement]:
    return [Measurement(**record) for record in json.loads((done.ref.path / RECORDS).read_text())]


def write_figure(out: Path, name: str, records: Iterable[Measurement], figure: "Figure") -> dict[str, Path]:
    """Writes a figure as PNG and the numbers in it as CSV, a line per measurement.

    Returns:
        The two files, by kind: "png" and "csv".
    """
    out = out.expanduser().absolute()
    files = {kind: out / f"{name}.{kind}" for kind in ("png", "csv")}
    figure.savefig(files["png"], dpi=150)
    with files["csv"].open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=[field.name for field in fields(Measurement)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
    return files


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step-{step}.safetensors"


def _write(out: Path, records: Iterable[Measurement]) -> None:
    (out / RECORDS).write_text(json.dumps([asdict(record) for record in records]))
