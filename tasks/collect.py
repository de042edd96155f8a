"""Collect activations and gradients: one forward-backward pass of each model leaves both artefacts."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.calibration import Batch, cross_covariances, draw_samples, split_at
from bico.memory import plan_memory
from bico.models.loading import ModelFiles
from bico.signals import Signal
from storage.arrays import new_arrays
from storage.keys import artefact_key
from tasks.stage import Done, TaskRef, Workspace, as_state, open_head, open_model, open_split

VERSION = 1
ACTIVATIONS = (Signal.INPUT, Signal.OUTPUT)
GRADIENTS = (Signal.OUTPUT_GRAD,)


@dataclass(frozen=True)
class Calibration:
    """What a collection depends on."""

    source: ModelFiles
    target: ModelFiles
    task: TaskRef
    samples: tuple[int, ...]
    """Ascending sample counts; the sets are nested, and one pass serves all of them."""
    seed: int
    batch_size: int = 32
    """Changes memory and rounding only, so it does not enter the key."""

    def key(self, signals: tuple[Signal, ...]) -> str:
        return artefact_key(
            "collect-gradients" if signals[0].is_gradient else "collect-activations",
            VERSION,
            source=self.source.digest(),
            target=self.target.digest(),
            task=self.task.open().identity,
            indices=self.indices,
            samples=list(self.samples),
            signals=list(signals),
        )

    @property
    def indices(self) -> list[int]:
        return draw_samples(self.task.open().sizes["train"], self.samples[-1], self.seed).tolist()


def array_name(tensor: str, signal: Signal, samples: int) -> str:
    return f"{tensor}/{signal}/{samples}"


@task(
    name="collect-activations",
    task_run_name="collect-activations {calibration.task.name} seed={calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
)
def collect_activations(space: Workspace, calibration: Calibration) -> Done | State[Done]:
    """Stores the activation covariances; if they are missing, the same pass leaves the gradient covariances too."""
    key = calibration.key(ACTIVATIONS)
    if space.artefacts.is_complete(key):
        return as_state(Done("collect-activations", space.artefacts.ref(key), cached=True))
    made = _collect(space, calibration, (ACTIVATIONS, GRADIENTS))
    return as_state(Done("collect-activations", *made[key]))


@task(
    name="collect-gradients",
    task_run_name="collect-gradients {calibration.task.name} seed={calibration.seed}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
)
def collect_gradients(space: Workspace, calibration: Calibration, activations: Done) -> Done | State[Done]:
    """Stores the gradient covariances, which the pass of `collect_activations` has left unless that was cached."""
    key = calibration.key(GRADIENTS)
    ref, found = _collect(space, calibration, (GRADIENTS,))[key]
    # What the neighbour's pass of this run has made was computed by this run.
    return as_state(Done("collect-gradients", ref, cached=found and activations.cached))


def _collect(space: Workspace, calibration: Calibration, groups: tuple[tuple[Signal, ...], ...]) -> dict:
    keys = {calibration.key(signals): signals for signals in groups}

    def build(folders: dict[str, Path]) -> None:
        wanted = {key: keys[key] for key in folders}
        attrs = {"seed": calibration.seed, "samples": list(calibration.samples), "indices": calibration.indices}
        with ExitStack() as stack:
            # Written as they come: of the snapshots and passes, one at a time is in memory.
            write = {k: stack.enter_context(new_arrays(f / "covariances", attrs)) for k, f in folders.items()}
            for samples, covariances in _stream(
                space, calibration, [s for signals in wanted.values() for s in signals]
            ):
                for key, signals in wanted.items():
                    chosen = [(tensor, signal) for tensor, signal in covariances if signal in signals]
                    write[key]((array_name(*name, samples), covariances.pop(name)) for name in chosen)

    meta = {
        "source": calibration.source.ref,
        "target": calibration.target.ref,
        "task": asdict(calibration.task),
        "seed": calibration.seed,
        "samples": list(calibration.samples),
    }
    return space.artefacts.get_or_create_many(list(keys), build, meta)


def _stream(space: Workspace, calibration: Calibration, signals: list[Signal]):
    models = [calibration.source, calibration.target]
    source, target = (open_model(files, space.device) for files in models)
    ours, theirs = (open_split(files, space.device, calibration.task, "train") for files in models)
    heads = tuple(open_head(files, space.device, calibration.task) for files in models)
    indices = draw_samples(len(ours), calibration.samples[-1], calibration.seed)

    def batches():
        for part in split_at(len(indices), calibration.batch_size, calibration.samples):
            inputs, labels = ours.batch(indices[part])
            yield Batch(inputs, theirs.batch(indices[part])[0], labels)

    plan = plan_memory(source, target, signals, calibration.batch_size, len(calibration.samples), space.memory)
    for sites in plan.passes:
        yield from cross_covariances(source, target, batches(), heads, signals, calibration.samples, sites)
