"""The artefacts that each stage will leave, by what it is called with: so that a plan can look for them without a run."""

from collections.abc import Callable
from typing import Any

from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.scales import Side
from tasks import completions, pairs
from tasks.adapters import carry_adapter, carry_key
from tasks.cached_stage import Done, Workspace
from tasks.calibration import Calibration
from tasks.collect import Pass, collect_activations, collect_gradients
from tasks.distances import class_distances, distances_key
from tasks.evaluate import evaluate_key, evaluate_model
from tasks.finetune import adopt_expert, adopt_key, finetune_key, finetune_model
from tasks.gradients import collect_parameter_gradients, gradients_key
from tasks.last_steps import last_steps_key, take_last_steps
from tasks.maps import BlockMaps
from tasks.merge import choose_strengths, merge_key, merge_vectors, strengths_key
from tasks.probe import probe_key, probe_model
from tasks.procrustes import solve_maps
from tasks.scales import collect_scales, scales_key
from tasks.transfer import transfer_key, transfer_vector
from tasks.validate import validate_key, validate_model


def _pass(gradients: bool) -> Callable[..., list[str]]:
    return lambda space, one, *_: list(one.of(gradients))


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
    carry_adapter.name: _one(carry_key),
    class_distances.name: _one(distances_key),
    collect_activations.name: _pass(gradients=False),
    collect_gradients.name: _pass(gradients=True),
    collect_parameter_gradients.name: _gradients,
    collect_scales.name: _scales,
    evaluate_model.name: _one(evaluate_key),
    merge_vectors.name: _one(merge_key),
    choose_strengths.name: _one(strengths_key),
    finetune_model.name: _one(finetune_key),
    completions.measure_model.name: _one(completions.completions_key),
    pairs.measure_model.name: _one(pairs.pairs_key),
    probe_model.name: _one(probe_key),
    solve_maps.name: _maps,
    take_last_steps.name: _one(last_steps_key),
    transfer_vector.name: _one(transfer_key),
    validate_model.name: _one(validate_key),
}
"""By the stage's name; the artefact that its reference names comes first."""


def left_beside(args: tuple[Any, ...]) -> list[str]:
    """What a pass leaves for its neighbour, too."""
    return [key for one in args if isinstance(one, Pass) for key in one.leaves]


def goes_with(args: tuple[Any, ...]) -> bool:
    """Whether a stage comes from a pass of this run that its neighbour has made, and so counts as computed."""
    return any(isinstance(one, Done) and not one.cached for one in args)
