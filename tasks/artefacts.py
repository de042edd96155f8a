"""What lies where inside the artefacts of the stages, and how it is read back.

No other module knows the names of files and arrays; stages write through the functions here, and read what other stages
have left. What an artefact is made of, and so its key, is the stage's own matter.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bico.adapters.folder import CONFIG, weights_in
from bico.calibration.scales import Scale, Scales
from bico.calibration.signals import Signal
from bico.evaluation.linear_head import LinearHead
from bico.linalg.grams import Grams
from bico.linalg.procrustes import AlignmentMap, MapRule
from bico.linalg.sketch import Cross, Sketch
from bico.models.weight_files import LINEAR_HEAD, TASK_VECTOR
from bico.task_vector import StateDict, subtract
from storage.arrays import array_names, iterate_arrays, new_arrays, read_arrays, read_attrs, write_arrays
from storage.artefacts import folder_of
from storage.checkpoints import load_state, save_state
from storage.keys import Ref

if TYPE_CHECKING:
    from bico.analysis.records import Measurement
    from bico.evaluation.measures import Measures
    from bico.last_steps.curve import StrengthCurve

EXPERT = "expert.safetensors"
VECTOR = "task_vector.safetensors"
EXPORTED_VECTOR = TASK_VECTOR
"""Beside an exported model."""
_METRICS = "metrics.json"
_MEASUREMENTS = "measurements.json"
_SCALES = "scales.json"
_CURVE = "strengths.json"
_ADAPTER, _TOLD = "adapter", "told.json"
_COVARIANCES, _MAPS, _DISTANCES = "covariances", "maps", "distances"
_RANGE, _CORANGE = "range", "corange"
_GRAMS = ("cross", "of-source", "of-target")


# Experts and task vectors ---------------------------------------------------------------------------------------------


def write_expert(folder: Path, state: StateDict) -> None:
    save_state(folder / EXPERT, state)


def expert_file(ref: Ref) -> Path:
    return folder_of(ref) / EXPERT


def read_task_vector(expert: Ref, state: Mapping[str, Tensor]) -> StateDict:
    """Returns a stored expert's task vector, on the device of the state that it was fine-tuned from."""
    return subtract(_on_device_of(state, load_state(expert_file(expert))), state)


def write_vector(
    folder: Path,
    vector: StateDict,
    state: Mapping[str, Tensor],
    head: LinearHead | None = None,
    curve: "StrengthCurve | None" = None,
) -> None:
    """Leaves a task vector of the target, the classifier that comes with it, and how its strength was found.

    Arguments:
        state: The target's parameters. A file has to hold a tensor, so an empty vector is written as a zero for one.
    """
    name = list(state)[-1]
    save_state(folder / VECTOR, vector or {name: torch.zeros_like(state[name])})
    if head is not None:
        save_state(folder / LINEAR_HEAD, {"weight": head.weight, "bias": head.bias})
    if curve is not None:
        (folder / _CURVE).write_text(json.dumps(asdict(curve)))


def vector_file(ref: Ref) -> Path:
    return folder_of(ref) / VECTOR


def linear_head_file(ref: Ref) -> Path | None:
    """The classifier that a stage has left, if it has left one."""
    file = folder_of(ref) / LINEAR_HEAD
    return file if file.exists() else None


def read_vector(ref: Ref, device: torch.device | str = "cpu") -> StateDict:
    """Returns a stored task vector of the target."""
    return {name: tensor.to(device) for name, tensor in load_state(vector_file(ref)).items()}


def read_update(weights: Ref | None, state: StateDict) -> StateDict:
    """Returns what a stage's weights add to a model: a task vector, a fine-tuned state less the model's, or nothing."""
    if weights is None:
        return {}
    return read_vector(weights) if vector_file(weights).exists() else read_task_vector(weights, state)


def adapter_folder(folder: Path) -> Path:
    """Where an adapter lies beside the task vector that it is."""
    return folder / _ADAPTER


def carried_adapter(ref: Ref) -> Path:
    """The folder of a carried adapter, in PEFT's layout."""
    return adapter_folder(folder_of(ref))


def write_as_adapter(folder: Path, given: Path) -> None:
    """Leaves an expert as the adapter that it is, whose folder is given."""
    place = adapter_folder(folder)
    place.mkdir()
    for path in [given / CONFIG, *weights_in(given), *given.glob("*.index.json")]:
        shutil.copyfile(path, place / path.name)


def write_told(folder: Path, kept: Mapping[str, float], notes: Sequence[str]) -> None:
    """Leaves what became of an adapter: the share of its energy that each module kept that was cut, and lines for people."""
    (folder / _TOLD).write_text(json.dumps({"kept": dict(kept), "notes": list(notes)}))


def read_told(ref: Ref) -> tuple[dict[str, float], list[str]]:
    found = json.loads((folder_of(ref) / _TOLD).read_text(encoding="utf-8"))
    return found["kept"], found["notes"]


def read_linear_head(weights: Ref | None) -> LinearHead | None:
    file = None if weights is None else linear_head_file(weights)
    return None if file is None else LinearHead(**load_state(file))


def read_curve(weights: Ref) -> "StrengthCurve | None":
    """How the strength of a stored task vector was found, if it was searched (and later than curves are kept)."""
    from bico.last_steps.curve import StrengthCurve  # here, since workers that solve maps need no last steps

    file = folder_of(weights) / _CURVE
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return StrengthCurve(tuple(found["strengths"]), tuple(found["losses"]), found["chosen"])


def write_checkpoint(folder: Path, step: int, state: StateDict) -> None:
    """Leaves one point of a trajectory."""
    save_state(folder / f"step-{step}.safetensors", state)


def read_checkpoint(trajectory: Ref, step: int) -> StateDict:
    return load_state(folder_of(trajectory) / f"step-{step}.safetensors")


# Covariances and maps -------------------------------------------------------------------------------------------------


def array_name(tensor: str, signal: Signal, count: int) -> str:
    """What an array is called: by the tensor that carries the signal, and the count that its set was asked for by."""
    return f"{tensor}/{signal}/{count}"


@contextmanager
def new_covariances(folder: Path, about: Mapping[str, Any]) -> Iterator[Callable[[Iterable[tuple[str, Cross]]], None]]:
    """Gives a function that takes covariances or sketches of them bit by bit, by `array_name`."""
    with new_arrays(folder / _COVARIANCES, about) as write:
        yield lambda crosses: write((part, tensor) for name, cross in crosses for part, tensor in _parts(name, cross))


def _parts(name: str, cross: Cross) -> list[tuple[str, Tensor]]:
    """The arrays of one covariance."""
    if isinstance(cross, Sketch):
        return [(f"{name}/{_RANGE}", cross.range), (f"{name}/{_CORANGE}", cross.corange)]
    if isinstance(cross, Grams):
        parts = zip(_GRAMS, (cross.cross, cross.source, cross.target), strict=True)
        return [(f"{name}/{part}", tensor) for part, tensor in parts]
    return [(name, cross)]


def iterate_covariances(ref: Ref, names: Iterable[str]) -> Iterator[tuple[str, Cross]]:
    """Covariances by name, one in memory at a time, as they were collected: whole, with Gram matrices, or as sketches."""
    folder = folder_of(ref) / _COVARIANCES
    known = set(array_names(folder))
    for name in names:
        if name in known:
            yield from iterate_arrays(folder, [name])
        elif f"{name}/{_GRAMS[0]}" in known:
            yield name, Grams(*read_arrays(folder, [f"{name}/{part}" for part in _GRAMS]).values())
        else:
            parts = read_arrays(folder, [f"{name}/{_RANGE}", f"{name}/{_CORANGE}"])
            yield name, Sketch(*parts.values())


def write_maps(folder: Path, solved: Mapping[str, AlignmentMap], rule: MapRule) -> None:
    """Leaves the factors of maps with their spectra and ranks, by `array_name`.

    Arguments:
        rule: By which they were solved.
    """
    arrays: dict[str, Tensor] = {}
    for name, found in solved.items():
        arrays |= {f"{name}/left": found.left, f"{name}/right": found.right, f"{name}/spectrum": found.spectrum}
    ranks = {name: found.rank for name, found in solved.items()}
    most = {name: min(*found.shape, rule.most or min(found.shape)) for name, found in solved.items()}
    write_arrays(folder / _MAPS, arrays, {"ranks": ranks, "most": most})


def iterate_maps(ref: Ref, names: Sequence[str]) -> Iterator[tuple[str, AlignmentMap]]:
    """Maps by name, one in memory at a time."""
    folder = folder_of(ref) / _MAPS
    ranks = read_attrs(folder)["ranks"]
    for name in names:
        left, right, spectrum = read_arrays(
            folder, [f"{name}/{part}" for part in ("left", "right", "spectrum")]
        ).values()
        yield name, AlignmentMap(left, right, ranks[name], spectrum)


def most_directions(ref: Ref, count: int) -> int:
    """The directions that the richest of an artefact's maps keeps at one count."""
    ranks: dict[str, int] = read_attrs(folder_of(ref) / _MAPS)["ranks"]
    return max((rank for name, rank in ranks.items() if name.rpartition("/")[2] == str(count)), default=0)


def determined_shares(ref: Ref, names: Sequence[str]) -> list[float]:
    """Of each map, the share (0..1) of its directions that the samples determined: of the narrower side's, or of as many as
    it keeps at most.
    """
    folder = folder_of(ref) / _MAPS
    ranks, most = (read_attrs(folder)[what] for what in ("ranks", "most"))
    return [ranks[name] / most[name] for name in names]


# Gradients, scales and distances ----------------------------------------------------------------------------------------------


def write_parameter_gradients(folder: Path, count: int, gradients: StateDict, about: Mapping[str, Any]) -> None:
    """Leaves a statistic at one count: a group of arrays for each, so that memory holds one."""
    write_arrays(folder / f"gradients-{count}", gradients, about)


def read_parameter_gradients(ref: Ref, count: int) -> StateDict:
    """A statistic at one count, by parameter."""
    return read_arrays(folder_of(ref) / f"gradients-{count}")


def write_scales(folder: Path, scales: Mapping[int, Scales]) -> None:
    """Leaves the scales of one model's signals, by the count of samples."""
    records = {
        str(count): [[tensor, signal, *scale] for (tensor, signal), scale in found.items()]
        for count, found in scales.items()
    }
    (folder / _SCALES).write_text(json.dumps(records))


def read_scales(ref: Ref, count: int) -> Scales:
    """Scales at one count, by signal key."""
    records = json.loads((folder_of(ref) / _SCALES).read_text())[str(count)]
    return {(tensor, Signal(signal)): Scale(squares, rows) for tensor, signal, squares, rows in records}


def write_distances(folder: Path, distances: Tensor) -> None:
    write_arrays(folder / _DISTANCES, {_DISTANCES: distances})


def read_distances(ref: Ref) -> Tensor:
    return read_arrays(folder_of(ref) / _DISTANCES, [_DISTANCES])[_DISTANCES]


# Numbers --------------------------------------------------------------------------------------------------------------


def write_accuracy(folder: Path, percent: float) -> None:
    (folder / _METRICS).write_text(json.dumps({"accuracy": percent}))


def read_accuracy(ref: Ref) -> float:
    """Percent; where there are several measures, that of the one that stands for the model."""
    return json.loads((folder_of(ref) / _METRICS).read_text(encoding="utf-8"))["accuracy"]


def write_measures(folder: Path, measures: "Measures") -> None:
    (folder / _METRICS).write_text(
        json.dumps({"accuracy": measures.value, "measure": measures.name, "all": measures.all})
    )


def read_measures(ref: Ref) -> "Measures":
    from bico.evaluation.measures import Measures

    found = json.loads((folder_of(ref) / _METRICS).read_text(encoding="utf-8"))
    return Measures(found["measure"], found["all"])


def write_measurements(folder: Path, records: Iterable["Measurement"]) -> None:
    (folder / _MEASUREMENTS).write_text(json.dumps([asdict(record) for record in records]))


def read_measurements(ref: Ref) -> list["Measurement"]:
    from bico.analysis.records import Measurement  # here, since workers that solve maps need no analyses

    return [
        Measurement(**record) for record in json.loads((folder_of(ref) / _MEASUREMENTS).read_text(encoding="utf-8"))
    ]


def _on_device_of(state: Mapping[str, Tensor], tensors: StateDict) -> StateDict:
    device = next(iter(state.values())).device
    return {name: tensor.to(device) for name, tensor in tensors.items()}
