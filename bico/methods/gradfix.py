"""GradFix: keep what the target's own loss gradient agrees with."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from torch import Tensor

from bico.calibration.parameter_gradients import ParameterGradient
from bico.methods.evidence import Evidence, Needs
from bico.methods.protocol import Pair, Serves, check_one_architecture
from bico.task_vector import StateDict


class Mask(StrEnum):
    """What an entry becomes by the sign of the target's descent direction."""

    NORMAL = "normal"
    """It is kept if the signs agree, else dropped."""
    FORCE = "force"
    """It keeps its size and takes the descent direction's sign; dropped where that is zero."""


class Vote(StrEnum):
    """How the samples' gradients make one sign."""

    MAJORITY = "majority"
    """The sign that most samples want; an even split is zero."""
    MEAN = "mean"
    """The sign of the mean gradient."""


@dataclass(frozen=True)
class GradFix:
    r"""Masks the source's task vector, elementwise, by the sign of the target's descent direction.

    .. math:: \tau_B = \tau_A \odot [\operatorname{sign} g = \operatorname{sign} \tau_A] \quad\text{or}\quad |\tau_A| \odot \operatorname{sign} g

    All parameters, embeddings and layer norms included. Nothing is aligned, so it takes two models of one
    architecture. The loss is taken in the target's own zero-shot head, re-normalised after averaging the prompts as
    everywhere in this project; the authors' code does not re-normalise, which can move signs.

    References:
        | Gradient-Sign Masking for Task Vector Transport Across Pre-Trained Models (Rinaldi et al., 2025)
    """

    mask: Mask = Mask.NORMAL
    vote: Vote = Vote.MAJORITY

    name: ClassVar[str] = "gradfix"
    label: ClassVar[str] = "GradFix"
    colour: ClassVar[str] = "#7e22ce"
    reference: ClassVar[str] = "GradFix: gradient-sign masking (Rinaldi et al., 2025)"
    serves: ClassVar[Serves] = Serves.ONE_ARCHITECTURE
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    @property
    def _kind(self) -> ParameterGradient:
        return ParameterGradient.VOTES if Vote(self.vote) is Vote.MAJORITY else ParameterGradient.SUM

    @property
    def needs(self) -> Needs:
        return Needs(gradients=frozenset({self._kind}))

    def check(self, pair: Pair) -> None:
        check_one_architecture(self.name, pair)

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)
        gathered = evidence.gradient(self._kind)
        # Votes are of the descent direction already; a gradient points uphill.
        wanted = {name: (g if self._kind is ParameterGradient.VOTES else -g).sign() for name, g in gathered.items()}
        if Mask(self.mask) is Mask.FORCE:
            return {name: tensor.abs() * wanted[name].to(tensor) for name, tensor in tau.items()}
        return {name: tensor * (tensor.sign() == wanted[name].to(tensor)) for name, tensor in tau.items()}
