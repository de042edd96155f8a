"""Cross-LoRA: the update moves between the leading singular subspaces of the two base weights; needs no data."""

from dataclasses import dataclass, field
from typing import ClassVar

from bico.errors import ConfigError
from bico.methods.protocol import Serves
from bico.methods.settings import OWN
from bico.methods.weight_aligned import WeightAligned


@dataclass(frozen=True)
class CrossLora(WeightAligned):
    r"""Carries what of an update lies in the leading singular subspaces of the source's weight into those of the target's.

    .. math:: W \approx U_r \Sigma_r V_r^\top, \qquad
        P = \arg\min_P \|P U_{A,r} - U_{B,r}\|_F = U_{B,r} U_{A,r}^\top, \qquad \tau_B = P_{out} \tau_A P_{in}^\top

    on each side, with the least P among the optimal ones, which is zero outside the subspace. It is the map that the paper's
    abstract names (rank-truncated SVDs of both bases, a Frobenius-optimal linear map between them); the paper keeps
    updates in LoRA's factors, here they may be any. With every direction kept it is `theseus-data-free`.

    References:
        | Cross-LoRA: A Data-Free LoRA Transfer Framework across Heterogeneous LLMs (Xia et al., 2025)
        | https://arxiv.org/abs/2508.05232
    """

    rank: int = field(default=64, metadata=OWN)
    """Singular directions kept of each weight, at most."""

    name: ClassVar[str] = "cross-lora"
    label: ClassVar[str] = "Cross-LoRA"
    colour: ClassVar[str] = "#4d7c0f"
    reference: ClassVar[str] = "Cross-LoRA: A Data-Free LoRA Transfer Framework across Heterogeneous LLMs"
    serves: ClassVar[Serves] = Serves.ANY
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"cross-lora needs rank >= 1, got {self.rank}.")

    @property
    def most(self) -> int:
        return self.rank
