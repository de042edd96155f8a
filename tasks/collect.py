"""Collect activations and gradients: one forward-backward pass of each model leaves all covariances."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.calibration.blockwise import covariances_by_block, turns
from bico.calibration.covariances import Batch, Covariances, cross_covariances, split_at
from bico.calibration.memory import plan_memory
from bico.calibration.pairing import is_beside
from bico.calibration.signals import Signal
from bico.models.protocol import Blockwise
from storage.keys import Ref, artefact_key
from tasks.artefacts import array_name, new_covariances
from tasks.cached_stage import Done, Workspace, as_state
from tasks.calibration import Calibration
from tasks.inputs import open_head, open_model, open_split
from tasks.progress import counted, reported
from tasks.retries import RETRIES

VERSION = 2
STAGES = {
    Signal.INPUT: "collect-activations",
    Signal.OUTPUT: "collect-activations",
    Signal.OUTPUT_GRAD: "collect-gradients",
    Signal.INPUT_GRAD: "collect-gradients",
}


@dataclass(frozen=True)
class Pass:
    """One pass of both models over the samples of a calibration: what it leaves."""

    calibration: Calibration
    signals: tuple[Signal, ...]
    most: int | None
    """The strongest directions that will be asked for; None for all."""
    beside: tuple[Signal, ...] = ()
    """Signals that meet those of other blocks as well, which sums over blocks take: artefacts of their own."""
    grams: bool = False
    """Whether Gram matrices are collected, too."""

    def key(self, signal: Signal, beside: bool = False) -> str:
        """Of the covariances of one signal. Methods that need others share it."""
        more = {name: True for name, is_so in (("beside", beside), ("grams", self.grams)) if is_so}
        return artefact_key(
            STAGES[signal],
            VERSION,
            source=self.calibration.source.digest(),
            target=self.calibration.target.digest(),
            signal=signal,
            most=self.most,
            **more,
            **self.calibration.identity,
        )

    def only(self, keys: Collection[str]) -> "Pass":
        """What of it leaves covariances of these keys."""
        signals, beside = (
            tuple(signal for signal in of if self.key(signal, is_so) in keys)
            for of, is_so in ((self.signals, False), (self.beside, True))
        )
        return replace(self, signals=signals, beside=beside)

    @property
    def leaves(self) -> dict[str, tuple[Signal, bool]]:
        """Its artefacts, by key: of which signal, and whether of pairs besides counterparts."""
        wanted = [(signal, False) for signal in self.signals] + [(signal, True) for signal in self.beside]
        return {self.key(*one): one for one in wanted}

    def of(self, gradients: bool) -> dict[str, tuple[Signal, bool]]:
        """What of it are gradients, or the other signals."""
        return {key: one for key, one in self.leaves.items() if one[0].is_gradient == gradients}


@task(
    name="collect-activations",
    task_run_name="collect-activations {one.calibration.task.name} seed={one.calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def collect_activations(space: Workspace, one: Pass) -> Done | State[Done]:
    """Stores the activation covariances; the pass that makes them leaves the gradients' that are wanted, too."""
    made = _collect(space, one)
    return as_state(_done(one.of(gradients=False), made))


@task(
    name="collect-gradients",
    task_run_name="collect-gradients {one.calibration.task.name} seed={one.calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def collect_gradients(space: Workspace, one: Pass, activations: Done | None) -> Done | State[Done]:
    """Stores the gradient covariances, which the pass of `collect_activations` has left if there was one."""
    found = _done(one.of(gradients=True), _collect(space, one))
    # What the neighbour's pass of this run has made was computed by this run.
    return as_state(replace(found, cached=found.cached and (activations is None or activations.cached)))


def _done(wanted: dict[str, tuple[Signal, bool]], made: dict[str, tuple[Ref, bool]]) -> Done:
    found = [made[key] for key in wanted]
    (signal, _), *_ = wanted.values()
    return Done(STAGES[signal], found[0][0], all(cached for _, cached in found))


def _collect(space: Workspace, one: Pass) -> dict[str, tuple[Ref, bool]]:
    keys = one.leaves

    def build(folders: dict[str, Path]) -> None:
        with ExitStack() as stack:
            # Written as they come: of the snapshots and passes, one at a time is in memory.
            write = {
                keys[key]: stack.enter_context(new_covariances(folder, one.calibration.drawn))
                for key, folder in folders.items()
            }
            for samples, covariances in _stream(space, one.only(folders)):
                for signal, beside in write:
                    chosen = [key for key in covariances if key[1] is signal and is_beside(key[0]) == beside]
                    write[signal, beside]((array_name(*key, samples), covariances.pop(key)) for key in chosen)

    meta = {
        "source": one.calibration.source.ref,
        "target": one.calibration.target.ref,
        "task": one.calibration.task.about,
        "seed": one.calibration.seed,
        "sampling": one.calibration.sampling,
        "samples": list(one.calibration.counts),
        "most": one.most,
    }
    return space.artefacts.get_or_create_many(list(keys), build, meta)


def _stream(space: Workspace, one: Pass) -> Iterator[tuple[int, Covariances]]:
    calibration = one.calibration
    signals, beside = (dict.fromkeys(of, one.most) for of in (one.signals, one.beside))
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

    if isinstance(source, Blockwise) and isinstance(target, Blockwise):
        given = list(batches())
        with reported("collect", f"blocks of {calibration.task.name}", turns(source, target, len(given))) as advance:
            about = given, (head, their_head), signals, list(count_of), advance, calibration.between
            for size, covariances in covariances_by_block(source, target, *about):
                yield count_of[size], covariances
        return
    counts = len(calibration.counts)
    plan = plan_memory(source, target, signals, calibration.batch_size, counts, space.memory, beside, one.grams)
    parts = len(list(split_at(len(indices), calibration.batch_size, count_of)))
    with reported("collect", f"batches of {calibration.task.name}", parts * len(plan.passes)) as advance:
        for n, sites in enumerate(plan.passes):

            def further(done: int, before: int = n * parts) -> None:
                advance(before + done)

            seen = counted(batches(), further)
            for size, covariances in cross_covariances(
                source,
                target,
                seen,
                (head, their_head),
                signals,
                list(count_of),
                sites,
                between=calibration.between,
                beside=beside,
                grams={*signals, *beside} if one.grams else (),
            ):
                yield count_of[size], covariances
