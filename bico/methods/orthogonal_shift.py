"""Copy the update, less what of it points from the source to the target: what the two models already differ by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import ConfigError
from bico.methods.evidence import Evidence, Needs
from bico.methods.protocol import Pair, Serves, check_one_architecture
from bico.task_vector import StateDict


@dataclass(frozen=True)
class OrthogonalShift:
    r"""Copies a task vector without its part along the difference of the two models, parameter by parameter:

    .. math:: \tau_B = \tau_A - \beta \frac{\langle \tau_A, \delta \rangle}{\langle \delta, \delta \rangle} \delta,
        \qquad \delta = \theta_B - \theta_A

    Where the target is a newer release of the source, that part is a move that the release has made, or unmade, already.
    A parameter in which the models agree is copied. Without alignment it serves identical architectures only, as `naive` does.

    References:
        | Orthogonal shift in https://github.com/apanariello4/merge-and-rebase
    """

    beta: float = 1.0
    """How much of that part is taken away; 0 is plain copying."""

    name: ClassVar[str] = "orthogonal-shift"
    label: ClassVar[str] = "orthogonal shift"
    colour: ClassVar[str] = "#9f1239"
    reference: ClassVar[str] = "copy without its part along the models' difference (merge-and-rebase)"
    serves: ClassVar[Serves] = Serves.ONE_ARCHITECTURE
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.beta):
            raise ConfigError(f"orthogonal-shift needs a finite beta, got {self.beta}.")

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, pair: Pair) -> None:
        check_one_architecture(self.name, pair)

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)
        shifts = {name: pair.target_state[name] - pair.source_state[name] for name in tau}
        return {name: update - self.beta * along(update, shifts[name]) for name, update in tau.items()}


def along(update: Float[Tensor, "*shape"], shift: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns the part of an update along a shift; nothing if the shift is nothing.

    Example:
        >>> along(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0]))
        tensor([0., 2.])
    """
    if not shift.any():
        return torch.zeros_like(update)
    wide, direction = update.double(), shift.double()
    return ((wide * direction).sum() / direction.square().sum() * direction).to(update.dtype)
