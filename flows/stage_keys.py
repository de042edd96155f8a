"""The artefacts that each stage will leave, by what it is called with: so that a plan can look for them without a run."""

from collections.abc import Callable
from typing import Any

from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.scales import Side
from tasks.cached_stage import Done, Workspace
from tasks.calibration import Calibration
from tasks.collect import (
    ACTIVATIONS,
    GRADIENTS,
    INPUT_GRADIENTS,
    collect_activations,
    collect_gradients,
    collect_input_gradients,
    covariances_key,
)
from tasks.distances import class_distances, distances_key
from tasks.evaluate import evaluate_key, evaluate_model
from tasks.finetune import adopt_expert, adopt_key, finetune_key, finetune_model
from tasks.gradients import collect_parameter_gradients, gradients_key
from tasks.last_steps import last_steps_key, take_last_steps
from tasks.maps import BlockMaps
from tasks.pairs import measure_model, pairs_key
from tasks.probe import probe_key, probe_model
from tasks.procrustes import solve_maps
from tasks.scales import collect_scales, scales_key
from tasks.transfer import transfer_key, transfer_vector


def _activations(space: Workspace, calibration: Calibration, wanted: Any = (ACTIVATIONS, GRADIENTS)) -> list[str]:
    return [covariances_key(calibration, signals) for signals in wanted]


def _gradients(space: Workspace, calibration: Calibration, kinds: tuple[ParameterGradient, ...]) -> list[str]:
    return [gradients_key(calibration, kind) for kind in kinds]


def _scales(space: Workspace, calibration: Calibration, side: Side) -> list[str]:
    return [scales_key(calibration, side)]


def _maps(space: Workspace, block: BlockMaps) -> list[str]:
    return [part.key for part in block.parts]


def _one(key: Callable[..., str]) -> Callable[..., list[str]]:
    return lambda *args: [key(*args)]


KEYS: dict[str, Callable[..., list[str]]] = {
    adopt_expert.name: _one(adopt_key),
    class_distances.name: _one(distances_key),
    collect_activations.name: _activations,
    collect_gradients.name: lambda space, calibration, before: [covariances_key(calibration, GRADIENTS)],
    collect_input_gradients.name: lambda space, calibration, before: [covariances_key(calibration, INPUT_GRADIENTS)],
    collect_parameter_gradients.name: _gradients,
    collect_scales.name: _scales,
    evaluate_model.name: _one(evaluate_key),
    finetune_model.name: _one(finetune_key),
    measure_model.name: _one(pairs_key),
    probe_model.name: _one(probe_key),
    solve_maps.name: _maps,
    take_last_steps.name: _one(last_steps_key),
    transfer_vector.name: _one(transfer_key),
}
"""By the stage's name; the artefact that its reference names comes first."""


def goes_with(args: tuple[Any, ...]) -> bool:
    """Whether a stage comes from a pass of this run that its neighbour has made, and so counts as computed."""
    return any(isinstance(one, Done) and not one.cached for one in args)
