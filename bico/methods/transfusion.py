"""TransFusion: permute the source's features into the target's order; needs no data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bico.errors import ConfigError, MethodError
from bico.methods.evidence import Evidence, Needs
from bico.methods.protocol import Pair, Serves, check_one_architecture
from bico.models.permutations import PermutationGroup, Permutations, axes_of, identities, permute, permute_state
from bico.task_vector import StateDict

PROGRESS = 1e-12
"""An assignment has changed something if its value moved by more than this."""


@dataclass(frozen=True)
class TransFusion:
    """Carries the whole task vector in the basis of the permuted source whose weights agree best with the target's.

    Permutations are found by coordinate descent over the family's permutation groups (`Model.permutations`): heads
    are matched by the singular values of their weights, which no permutation changes, then features inside the
    matched heads and everywhere else by inner products. The shortcuts of the residual stream are no parameters here:
    see `bico.models.clip.permutations`.

    References:
        | Update Your Transformer to the Latest Release: Re-Basin of Task Vectors (Rinaldi et al., 2025)
        | Git Re-Basin (Ainsworth et al., 2023), https://arxiv.org/abs/2209.04836
    """

    sweeps: int = 100
    """At most so many passes over all groups."""
    intra_head: bool = True
    """Match features inside the heads too."""
    seed: int = 89
    """Order in which each sweep visits the groups."""

    name: ClassVar[str] = "transfusion"
    label: ClassVar[str] = "TransFusion"
    colour: ClassVar[str] = "#0e7490"
    reference: ClassVar[str] = "TransFusion: re-basin of task vectors (Rinaldi et al., 2025)"
    serves: ClassVar[Serves] = Serves.ONE_ARCHITECTURE
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.sweeps < 1 or not 0 <= self.seed < 2**63:
            raise ConfigError(f"transfusion needs sweeps >= 1 and 0 <= seed < 2^63, got {self}.")

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, pair: Pair) -> None:
        check_one_architecture(self.name, pair)
        if pair.source_permutations != pair.target_permutations:
            raise MethodError(
                f"{self.name} needs two models of one architecture, but their numbers of attention heads differ: use "
                "an aligned method (bico, theseus)."
            )
        known = {place.slot.parameter for group in pair.target_permutations for place in group.places}
        if missing := [name for name in pair.target_state if name not in known]:
            raise MethodError(
                f"{self.name} has no permutation group for {missing[0]}: this family's table does not cover it; use "
                "an aligned method (bico, theseus)."
            )
        if strange := sorted(known - set(pair.target_state)):
            raise MethodError(
                f"{self.name} has a permutation group for {strange[0]}, which the model lacks: this family's table does not hold "
                "for it; use an aligned method (bico, theseus)."
            )

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)
        groups = pair.target_permutations
        found = match(pair.source_state, pair.target_state, groups, self.sweeps, self.intra_head, self.seed)
        return permute_state(tau, groups, found)


def match(
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    groups: Sequence[PermutationGroup],
    sweeps: int = 100,
    intra_head: bool = True,
    seed: int = 89,
) -> Permutations:
    """Returns the permutations that bring the source's weights closest to the target's.

    Sweeps visit the groups in a fresh random order. The first match whole heads; once the last attention group of a
    sweep has not moved, they match features inside the heads, to the end. A sweep without any progress ends the
    search, but only after a sweep inside the heads: the authors' code may stop before it.
    """
    ours, theirs = ({slot: slot.read(state).double().cpu() for slot in axes_of(groups)} for state in (source, target))
    axes, found = axes_of(groups), identities(groups)
    generator = torch.Generator().manual_seed(seed)
    inside = False
    for _ in range(sweeps):
        progress, heads_moved = False, False
        for index in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[index]
            rows = {
                place.slot: (
                    permute(ours[place.slot], _without(axes[place.slot], group.name), found).movedim(place.axis, 0),
                    theirs[place.slot].movedim(place.axis, 0),
                )
                for place in group.places
            }
            if group.heads is None:
                found[group.name], moved = _match_features(list(rows.values()), found[group.name])
            else:
                weights = [pair for pair in rows.values() if pair[0].ndim > 1]  # biases have no say in attention
                matcher = _match_inside_heads if inside else _match_heads
                found[group.name], moved = matcher(weights, found[group.name], group.heads)
                heads_moved = moved
            progress |= moved
        if not inside and intra_head and not heads_moved:
            inside = True
        elif not progress:
            break
    return found


Rows = list[tuple[Tensor, Tensor]]
"""Pairs of a source and a target tensor with the group's axis first, in which all other groups are applied."""


def _match_features(rows: Rows, present: Int[Tensor, " size"]) -> tuple[Int[Tensor, " size"], bool]:
    """The permutation of largest total inner product, and whether it is larger than before."""
    size = len(present)
    products = (theirs.reshape(size, -1) @ ours.reshape(size, -1).T for ours, theirs in rows)
    return _assign(sum(products, torch.zeros(size, size, dtype=torch.float64)), present)


def _match_heads(rows: Rows, present: Int[Tensor, " size"], heads: int) -> tuple[Int[Tensor, " size"], bool]:
    """Matches heads by the distance of their singular values, summed over q, k, v and the output projection."""
    size = len(present) // heads
    distance = torch.zeros(heads, heads, dtype=torch.float64)
    for ours, theirs in rows:
        a, b = (torch.linalg.svdvals(side.unflatten(0, (heads, size))) for side in (ours, theirs))
        distance += (b[:, None] - a[None]).norm(dim=-1)
    order, moved = _assign(-distance, present.view(heads, size)[:, 0] // size)
    inside = present.view(heads, size) % size
    return (order[:, None] * size + inside).flatten(), moved


def _match_inside_heads(rows: Rows, present: Int[Tensor, " size"], heads: int) -> tuple[Int[Tensor, " size"], bool]:
    """Matches features inside each pair of matched heads; q, k, v and the output projection share the permutation."""
    size, moved = len(present) // heads, False
    result = present.view(heads, size).clone()
    for head in range(heads):
        first = int(present[head * size]) // size * size  # of the source's head
        products = (theirs[head * size : (head + 1) * size] @ ours[first : first + size].T for ours, theirs in rows)
        similarity = sum(products, torch.zeros(size, size, dtype=torch.float64))
        order, better = _assign(similarity, result[head] - first)
        result[head], moved = order + first, moved or better
    return result.flatten(), moved


def _assign(
    similarity: Float[Tensor, "target source"], present: Int[Tensor, " target"]
) -> tuple[Int[Tensor, " target"], bool]:
    """Returns the assignment of largest total similarity, or the present one if it is as good, and whether it won."""
    order = torch.as_tensor(linear_sum_assignment(similarity.numpy(), maximize=True)[1])
    here = torch.arange(len(present))
    better = bool(similarity[here, order].sum() > similarity[here, present].sum() + PROGRESS)
    return (order if better else present), better


def _without(axes: Mapping[int, str], name: str) -> dict[int, str]:
    return {axis: group for axis, group in axes.items() if group != name}
