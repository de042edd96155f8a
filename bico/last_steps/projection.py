"""LastStep of the last projection: the rest of the expert's change of features, by ridge regression."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bico.calibration.signals import Signal, signal_key
from bico.errors import ConfigError, MethodError, ShapeError
from bico.evaluation.linear_head import projection_of
from bico.last_steps.protocol import StepContext, StepResult
from bico.linalg.procrustes import MAP_RANK, Completion, MapRule
from bico.linalg.ridge import PENALTIES, Ridge, ridge
from bico.methods.evidence import Evidence, Needs
from bico.methods.settings import ADDED_LATER
from bico.models.protocol import Model
from bico.models.sites import Site
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Projection:
    r"""Moves the projection so that the target's features change as the expert's did.

    With features :math:`z` before normalisation and the pooled inputs :math:`X` of the updated target's projection,

    .. math:: R = z_B + (z_{A,ft} - z_A) Q_{out} - z_{B,updated}, \qquad
              \Delta W = (X^\top X + \lambda \bar d I)^{-1} X^\top R

    with :math:`\bar d` the mean diagonal of :math:`X^\top X` and λ by leave-one-out. No label is looked at, and the model
    keeps its open vocabulary. :math:`Q_{out}` is the map of the projection's output gradients, as in BiCo.
    """

    penalty: float = 0.0
    """λ, as a multiple of the mean diagonal; 0 chooses it by leave-one-out, inf changes nothing."""
    completion: Completion = Completion.PARTIAL
    """What the map of the features does outside the calibrated span."""
    rank: int = field(default=MAP_RANK, metadata=ADDED_LATER)
    """How many directions it keeps at most, the strongest first; 0 for all."""

    name: ClassVar[str] = "projection"
    label: ClassVar[str] = "projection"
    keeps_vocabulary: ClassVar[bool] = True
    told: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.penalty >= 0:
            raise ConfigError(f"projection: penalty={self.penalty} must be >= 0; 0 chooses it, inf changes nothing.")

    @property
    def trained(self) -> str:
        return "its last projection was refitted to the expert's change of features by ridge regression"

    @property
    def needs(self) -> Needs:
        return Needs(maps=frozenset({(Signal.OUTPUT_GRAD, self.rule)}))

    @property
    def rule(self) -> MapRule:
        return MapRule.of(self.completion, self.rank)

    def check(self, source: Model, target: Model) -> None:
        for model in (source, target):
            _projection(model)

    def take(self, vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
        self.check(context.source, context.target)
        site = _projection(context.target)
        q_out = evidence.map(signal_key(site, Signal.OUTPUT_GRAD), self.rule)
        updated = context.target_after(vector)
        wanted = context.source_after().features - context.source_before().features
        if q_out.shape != (wanted.shape[1], updated.features.shape[1]):
            raise ShapeError(
                f"{site.name}: a map of shape {tuple(q_out.shape)} cannot carry {wanted.shape[1]} features to "
                f"{updated.features.shape[1]}; it belongs to another pair of models."
            )
        missing = context.target_before().features + q_out.to(updated.features.device).forward(
            wanted.to(updated.features)
        )
        step = step_of(updated.pooled, missing - updated.features, self.penalty)
        return StepResult(added(vector, site, step.weight.T, context.target.state()))


def _projection(model: Model) -> Site:
    site = projection_of(model)
    if site is None:
        raise MethodError(
            f"projection refits a model's last projection, and {model.name} has none: use head (as in bico+head)."
        )
    return site


def step_of(
    pooled: Float[Tensor, "samples pooled"], residual: Float[Tensor, "samples features"], penalty: float
) -> Ridge:
    """The step from pooled inputs to what is missing in the features; its `explained` tells what unseen samples get."""
    return ridge(pooled, residual, [penalty] if penalty else PENALTIES)


def added(vector: StateDict, site: Site, step: Float[Tensor, "out in"], state: StateDict) -> StateDict:
    """Returns the task vector with a step more at one site's weight; the vector given is left as it was."""
    name = site.weight.parameter
    moved = vector[name].clone() if name in vector else state[name].new_zeros(state[name].shape)
    site.weight.write({name: moved}, site.weight.read({name: moved}) + step.to(moved))
    return {**vector, name: moved}
