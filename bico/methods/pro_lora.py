"""ProLoRA: what of an update lies in the source weight's leading subspace goes to the target's, the rest to the rest; no data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bico.errors import ConfigError
from bico.methods.evidence import Evidence
from bico.methods.protocol import Pair, Serves, carry_sites
from bico.methods.settings import OWN
from bico.methods.weight_aligned import WeightAligned
from bico.models.sites import Site
from bico.task_vector import StateDict

Ours = Float[Tensor, "source rank"]
Theirs = Float[Tensor, "target rank"]


@dataclass(frozen=True)
class ProLora(WeightAligned):
    r"""Projects an update twice, by the leading singular subspaces of both weights and by what is orthogonal to them:

    .. math:: \tau_B = \Pi_B^{out} \Pi_A^{out} \tau_A \Pi_A^{in} \Pi_B^{in}
        + (1 - \Pi_B^{out})(1 - \Pi_A^{out}) \tau_A (1 - \Pi_A^{in})(1 - \Pi_B^{in}),
        \qquad \Pi^{out} = U_r U_r^\top, \quad \Pi^{in} = V_r V_r^\top

    Both models are taken to have their features in common, so with all directions of square weights it is a copy. A side that is wider
    in one of them is mapped by :math:`U_{B,r} U_{A,r}^\top`, as LoRA-X does, and has no second part: outside of the
    leading directions nothing tells what goes where.

    References:
        | Zero-Shot Adaptation of Parameter-Efficient Fine-Tuning in Diffusion Models (Farhadzadeh et al., 2025)
        | https://arxiv.org/abs/2506.04244
        | LoRA-X: Bridging Foundation Models with Training-Free Cross-Model Adaptation (Farhadzadeh et al., 2025)
        | https://arxiv.org/abs/2501.16559
    """

    rank: int = field(default=64, metadata=OWN)
    """Singular directions of each weight that are its leading ones, at most."""
    similar: float = 0.0
    """Leave maps out whose leading subspaces, of inputs or outputs, overlap by less than this share; unrelated ones overlap
    by about rank / width. The paper leaves some out; 0 carries all."""

    name: ClassVar[str] = "pro-lora"
    label: ClassVar[str] = "ProLoRA"
    colour: ClassVar[str] = "#0f766e"
    reference: ClassVar[str] = "Zero-Shot Adaptation of Parameter-Efficient Fine-Tuning in Diffusion Models"
    serves: ClassVar[Serves] = Serves.ANY
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.similar <= 1:
            raise ConfigError(f"pro-lora needs rank >= 1 and similar from 0 to 1, got {self.rank} and {self.similar}.")

    @property
    def most(self) -> int:
        return self.rank

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)

        def carry(ours: Site, site: Site) -> tuple[Tensor, Tensor | None]:
            source, target = self._bases(ours, site, pair)
            gives, reads = (source.outputs, target.outputs), (source.inputs, target.inputs)
            weight = ours.weight.read(tau).double()
            bias = None if site.bias is None or ours.bias is None else ours.bias.read(tau).double()[:, None]
            if min(overlap(*gives), overlap(*reads)) < self.similar:
                shape = (len(target.outputs), len(target.inputs))
                return weight.new_zeros(shape), None if bias is None else bias.new_zeros(shape[0])
            moved = leading(*gives, leading(*reads, weight.T).T)
            if len(gives[0]) == len(gives[1]) and len(reads[0]) == len(reads[1]):
                moved = moved + rest(*gives, rest(*reads, weight.T).T)
            if bias is None:
                return moved, None
            shift = leading(*gives, bias)
            return moved, (shift + rest(*gives, bias) if len(gives[0]) == len(gives[1]) else shift)[:, 0]

        return carry_sites(tau, pair, self.others, carry, self.depth)


def overlap(ours: Ours, theirs: Theirs) -> float:
    """The share of one subspace that lies in another, from 0 to 1; of features that are not the same, 1, as nothing is known."""
    if len(ours) != len(theirs):
        return 1.0
    return float((ours.T @ theirs).square().sum() / theirs.shape[1])


def leading(ours: Ours, theirs: Theirs, columns: Float[Tensor, "source _"]) -> Float[Tensor, "target _"]:
    """What of columns lies in the source's subspace, in the target's; by order of the directions where widths differ."""
    kept = ours.T @ columns
    return theirs @ (theirs.T @ (ours @ kept) if len(ours) == len(theirs) else kept)


def rest(ours: Ours, theirs: Theirs, columns: Float[Tensor, "source _"]) -> Float[Tensor, "target _"]:
    """What of columns lies in neither subspace, less what the two projections take."""
    left = columns - ours @ (ours.T @ columns)
    return left - theirs @ (theirs.T @ left)
