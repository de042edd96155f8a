"""Methods that rotate every site's update into the target's coordinates: a method is a pair of signals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from bico.calibration.scales import Side
from bico.calibration.signals import Signal
from bico.errors import MethodError, ShapeError
from bico.linalg.procrustes import MAP_RANK, AlignmentMap, Completion, MapRule
from bico.methods.evidence import Evidence, Needs
from bico.methods.protocol import Others, Pair, carry_sites, check_others
from bico.methods.rope import Rope, check_heads, output_map
from bico.methods.settings import ADDED_LATER
from bico.methods.strength import Strength, effect_strengths, output_stood_for, sizes_of
from bico.models.depth import Depth, TakenSites, take_sites
from bico.models.sites import Site
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Aligned:
    r"""Carries a site's update by one map on each side (BiCo, eq. 8):

    .. math:: \tau_B = Q_{out}^\top \tau_A Q_{in}, \qquad \beta_B = Q_{out}^\top \beta_A

    with :math:`Q_{in}` of shape (in_A, in_B), :math:`Q_{out}` of shape (out_A, out_B) and biases :math:`\beta`.
    Subclasses say by which signal each side is aligned. A side without a signal is not aligned: its map is the
    identity, which exists only where the two models have the same width there.
    """

    completion: Completion = Completion.PARTIAL
    """What maps do outside the calibrated span."""
    others: Others = Others.LEAVE
    rank: int = field(default=MAP_RANK, metadata=ADDED_LATER)
    """How many directions a map keeps at most, the strongest first; 0 for all."""
    strength: Strength = field(default=Strength.FIXED, metadata=ADDED_LATER)
    """By how much each site's carried update is multiplied before α."""
    rope: Rope = field(default=Rope.FREE, metadata=ADDED_LATER)
    """Whether maps of what q and k give respect the heads and pairs of RoPE."""
    depth: Depth = field(default=Depth.ONE, metadata=ADDED_LATER)
    """What a target's block takes of a source that has another number of blocks; each source block by maps of its own."""
    whiten: float = field(default=0.0, metadata=ADDED_LATER)
    """The power p in [0, 1/2] by which both sides' rows are whitened before they are aligned: at 1/2 weak directions count as
    strong ones do."""

    name: ClassVar[str]
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""
    input_side: ClassVar[Signal | None]
    output_side: ClassVar[Signal | None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", self.rule.rank)  # one that is none is an error at once; plain maps keep all

    @property
    def rule(self) -> MapRule:
        return MapRule.of(self.completion, self.rank, self.whiten)

    @property
    def needs(self) -> Needs:
        sides = (self.input_side, self.output_side)
        maps = frozenset((signal, self.rule) for signal in sides if signal is not None)
        beside = maps if self.depth == Depth.SUM else frozenset()
        return Needs(maps, scales=self.strength == Strength.EFFECT, beside=beside)

    def check(self, pair: Pair) -> None:
        sources: dict[str, tuple[Site, ...]] = {name: (site,) for name, site in pair.matched.items()}
        if self.depth == Depth.SUM:
            taken = take_sites(pair.source_sites, pair.target_sites, self.depth)
            sources = {name: one.sites for name, one in taken.items()}
        for site in pair.target_sites:
            for side, signal, axis in (("output", self.output_side, 0), ("input", self.input_side, 1)):
                for source in sources[site.name]:
                    ours, theirs = source.shape[axis], site.shape[axis]
                    if signal is None and ours != theirs:
                        raise MethodError(
                            f"{self.name} leaves the {side} side as it is, but {site.name} has {theirs} {side} features "
                            f"and the source's {source.name} has {ours}: use a method that aligns both sides "
                            "(bico, theseus)."
                        )
        check_others(pair, self.others)
        check_heads(self.rope, pair.heads)

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)
        taken = take_sites(pair.source_sites, pair.target_sites, self.depth)

        def carry(ours: Site, site: Site) -> tuple[Tensor, Tensor | None]:
            q_in, q_out = self.maps(ours, site, pair, evidence)
            self._check_maps(ours, site, q_in, q_out)
            weight = _carry(q_out, ours.weight.read(tau), q_in)
            bias = None if site.bias is None or ours.bias is None else _carry(q_out, ours.bias.read(tau), None)
            if self.strength == Strength.EFFECT:
                strengths = self.strengths(ours, site, taken[site.name], evidence)
                weight, bias = strengths[0] * weight, None if bias is None else strengths[1] * bias
            return weight, bias

        return carry_sites(tau, pair, self.others, carry, self.depth)

    def maps(
        self, ours: Site, site: Site, pair: Pair, evidence: Evidence
    ) -> tuple[AlignmentMap | None, AlignmentMap | None]:
        """The maps from what a site of the source reads and gives to what one of the target does; None where a side is left as
        it is.
        """
        reads, gives = self.input_side, self.output_side
        q_in = None if reads is None else evidence.map(pair.key(ours, site, reads), self.rule)
        if gives is None:
            return q_in, None
        return q_in, output_map(ours, site, gives, self.rule, self.rope, evidence, pair)

    def strengths(self, ours: Site, site: Site, taken: TakenSites, evidence: Evidence) -> tuple[float, float]:
        """By how much updates of a weight and of a bias are multiplied, of one source site of all that the target's takes."""
        if self.strength != Strength.EFFECT:
            return 1.0, 1.0
        sizes = sizes_of(ours, Side.SOURCE, evidence), sizes_of(site, Side.TARGET, evidence)
        return effect_strengths(*sizes, output_stood_for(taken, evidence))

    def _check_maps(self, ours: Site, theirs: Site, q_in: AlignmentMap | None, q_out: AlignmentMap | None) -> None:
        for side, q, axis in (("output", q_out, 0), ("input", q_in, 1)):
            if q is not None and q.shape != (ours.shape[axis], theirs.shape[axis]):
                raise ShapeError(
                    f"{theirs.name}: a map of shape {tuple(q.shape)} cannot carry {ours.shape[axis]} {side} features "
                    f"to {theirs.shape[axis]}; it belongs to another pair of models."
                )


def _carry(q_out: AlignmentMap | None, update: Tensor, q_in: AlignmentMap | None) -> Tensor:
    """An update of a weight (out, in), or of a bias (out,)."""
    rows = update if update.ndim == 2 else update[:, None]
    rows = rows if q_in is None else q_in.forward(rows)
    rows = rows if q_out is None else q_out.forward(rows.T).T
    return rows if update.ndim == 2 else rows[:, 0]
