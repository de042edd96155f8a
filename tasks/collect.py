"""Collect activations and gradients: one forward-backward pass of each model leaves all covariances."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.calibration.covariances import Batch, Covariances, cross_covariances, split_at
from bico.calibration.memory import plan_memory
from bico.calibration.signals import Signal
from storage.keys import artefact_key
from tasks.artefacts import array_name, new_covariances
from tasks.cached_stage import Done, Workspace, as_state
from tasks.calibration import Calibration
from tasks.inputs import open_head, open_model, open_split
from tasks.progress import counted, reported
from tasks.retries import RETRIES

VERSION = 1
ACTIVATIONS = (Signal.INPUT, Signal.OUTPUT)
GRADIENTS = (Signal.OUTPUT_GRAD,)
INPUT_GRADIENTS = (Signal.INPUT_GRAD,)
"""Of use to ablations only, and as large as the rest together: collected when a method asks for it."""
STAGES = {
    ACTIVATIONS: "collect-activations",
    GRADIENTS: "collect-gradients",
    INPUT_GRADIENTS: "collect-input-gradients",
}


def covariances_key(calibration: Calibration, signals: tuple[Signal, ...]) -> str:
    return artefact_key(
        STAGES[signals],
        VERSION,
        source=calibration.source.digest(),
        target=calibration.target.digest(),
        signals=list(signals),
        **calibration.identity,
    )


@task(
    name="collect-activations",
    task_run_name="collect-activations {calibration.task.name} seed={calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def collect_activations(
    space: Workspace, calibration: Calibration, wanted: tuple[tuple[Signal, ...], ...] = (ACTIVATIONS, GRADIENTS)
) -> Done | State[Done]:
    """Stores the activation covariances; if they are missing, the same pass leaves all others that are wanted."""
    key = covariances_key(calibration, ACTIVATIONS)
    if space.artefacts.is_complete(key):
        return as_state(Done("collect-activations", space.artefacts.ref(key), cached=True))
    made = _collect(space, calibration, wanted)
    return as_state(Done("collect-activations", *made[key]))


@task(
    name="collect-gradients",
    task_run_name="collect-gradients {calibration.task.name} seed={calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def collect_gradients(space: Workspace, calibration: Calibration, activations: Done) -> Done | State[Done]:
    """Stores the gradient covariances, which the pass of `collect_activations` has left unless that was cached."""
    return as_state(_after_activations(space, calibration, GRADIENTS, activations))


@task(
    name="collect-input-gradients",
    task_run_name="collect-input-gradients {calibration.task.name} seed={calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def collect_input_gradients(space: Workspace, calibration: Calibration, activations: Done) -> Done | State[Done]:
    """Stores the covariances of the gradients that reach the sites' inputs, in the same way."""
    return as_state(_after_activations(space, calibration, INPUT_GRADIENTS, activations))


def _after_activations(
    space: Workspace, calibration: Calibration, signals: tuple[Signal, ...], activations: Done
) -> Done:
    ref, found = _collect(space, calibration, (signals,))[covariances_key(calibration, signals)]
    # What the neighbour's pass of this run has made was computed by this run.
    return Done(STAGES[signals], ref, cached=found and activations.cached)


def _collect(space: Workspace, calibration: Calibration, groups: tuple[tuple[Signal, ...], ...]) -> dict:
    keys = {covariances_key(calibration, signals): signals for signals in groups}

    def build(folders: dict[str, Path]) -> None:
        wanted = {key: keys[key] for key in folders}
        with ExitStack() as stack:
            # Written as they come: of the snapshots and passes, one at a time is in memory.
            write = {
                key: stack.enter_context(new_covariances(folder, calibration.drawn)) for key, folder in folders.items()
            }
            for samples, covariances in _stream(
                space, calibration, [s for signals in wanted.values() for s in signals]
            ):
                for key, signals in wanted.items():
                    chosen = [(tensor, signal) for tensor, signal in covariances if signal in signals]
                    write[key]((array_name(*name, samples), covariances.pop(name)) for name in chosen)

    meta = {
        "source": calibration.source.ref,
        "target": calibration.target.ref,
        "task": calibration.task.about,
        "seed": calibration.seed,
        "sampling": calibration.sampling,
        "samples": list(calibration.counts),
    }
    return space.artefacts.get_or_create_many(list(keys), build, meta)


def _stream(space: Workspace, calibration: Calibration, signals: list[Signal]) -> Iterator[tuple[int, Covariances]]:
    models = [calibration.source, calibration.target]
    source, target = (open_model(files, space.device) for files in models)
    ours, theirs = (open_split(files, space.device, calibration.task, "train") for files in models)
    head, their_head = (open_head(files, space.device, calibration.task, calibration.head_indices) for files in models)
    indices, count_of = torch.tensor(calibration.indices), {size: n for n, size in calibration.counts.items()}
    targets = calibration.targets(space)

    def batches() -> Iterator[Batch]:
        for part in split_at(len(indices), calibration.batch_size, count_of):
            inputs, labels = ours.batch(indices[part])
            yield Batch(inputs, theirs.batch(indices[part])[0], labels if targets is None else targets[part])

    plan = plan_memory(source, target, signals, calibration.batch_size, len(calibration.counts), space.memory)
    parts = len(list(split_at(len(indices), calibration.batch_size, count_of)))
    with reported("collect", f"batches of {calibration.task.name}", parts * len(plan.passes)) as advance:
        for n, sites in enumerate(plan.passes):

            def further(done: int, before: int = n * parts) -> None:
                advance(before + done)

            seen = counted(batches(), further)
            for size, covariances in cross_covariances(
                source, target, seen, (head, their_head), signals, list(count_of), sites, between=calibration.between
            ):
                yield count_of[size], covariances
