"""Which blocks of a source stand for which of a target of another depth: one each, or all, in order.

In a residual stream each block adds to what is there, so a stack that has fewer blocks does the work of several in each, and
one that has more spreads the work of one. The assignments here keep the order and leave no block out on either side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import ShapeError
from bico.models.matching import by_role, check_biases, match_blocks, match_sites
from bico.models.sites import Site


class Depth(StrEnum):
    """What a target's block takes of a source that has another number of blocks."""

    ONE = "one"
    """The update of the block at the same relative depth, as published: some are taken twice, or not at all."""
    SUM = "sum"
    """The sum of the updates of all blocks that it stands for; blocks that stand for the same one share its update."""


@dataclass(frozen=True)
class Taken:
    """What one block of the target takes."""

    blocks: tuple[int, ...]
    """Of the source, ascending."""
    share: float = 1.0
    """Of each one's update."""


def take_blocks(source: int, target: int, depth: Depth = Depth.ONE) -> list[Taken]:
    """Returns what each block of the target takes, by relative depth.

    For sums, each block of the shallower side stands for the blocks of the other whose middles lie in its part of the depth:
    as many for each as can be. With as many blocks on both sides each takes its counterpart, however it is asked for.

    Raises:
        ShapeError: If a side has no blocks.

    Example:
        >>> [taken.blocks for taken in take_blocks(source=6, target=3, depth=Depth.SUM)]
        [(0, 1), (2, 3), (4, 5)]
        >>> [(taken.blocks, taken.share) for taken in take_blocks(source=2, target=4, depth=Depth.SUM)]
        [((0,), 0.5), ((0,), 0.5), ((1,), 0.5), ((1,), 0.5)]
    """
    if depth is Depth.ONE:
        return [Taken((block,)) for block in match_blocks(source, target)]
    if source < 1 or target < 1:
        raise ShapeError(f"Blocks to match must be at least one on each side, got {source} and {target}.")
    many, few = max(source, target), min(source, target)
    places = [(2 * n + 1) * few // (2 * many) for n in range(many)]
    return _grouped(places, target) if source > target else _shared(places)


@dataclass(frozen=True)
class TakenSites:
    """What one site of the target takes."""

    sites: tuple[Site, ...]
    """Of the source, in forward order."""
    share: float = 1.0
    """Of each one's update."""


def take_sites(source: Sequence[Site], target: Sequence[Site], depth: Depth = Depth.ONE) -> dict[str, TakenSites]:
    """Returns what each site of the target takes, by its name: of the same stack and role, of the blocks of `take_blocks`.

    Raises:
        MethodError: As `match_sites` does, for each of the sites that are taken.
    """
    matched = match_sites(source, target)
    if depth is Depth.ONE:
        return {name: TakenSites((site,)) for name, site in matched.items()}
    ours, found = by_role(source), {}
    for role, sites in by_role(target).items():
        for site, taken in zip(sites, take_blocks(len(ours[role]), len(sites), depth), strict=True):
            found[site.name] = TakenSites(tuple(ours[role][block] for block in taken.blocks), taken.share)
            for one in found[site.name].sites:
                check_biases(one, site)
    return {name: found[name] for name in matched}


def take_alike(likeness: Float[Tensor, "source target"]) -> list[Taken]:
    """Returns what each block of the target takes by `Depth.SUM`, assigned by how alike blocks are in place of depth.

    Of all assignments that keep the order and leave no block out, the one with the largest sum of likenesses; where several
    have it, blocks are taken as early as can be.

    Arguments:
        likeness: Such as the CKA of what two blocks read.

    Raises:
        ShapeError: If it is empty or not finite.

    Example:
        >>> take_alike(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.7]]))
        [Taken(blocks=(0, 1), share=1.0), Taken(blocks=(2,), share=1.0)]
    """
    if likeness.ndim != 2 or not likeness.numel() or not likeness.isfinite().all():
        raise ShapeError(f"Likenesses of blocks must be finite numbers (source, target), got {tuple(likeness.shape)}.")
    source, target = likeness.shape
    if source > target:
        return _grouped(_onto(likeness), target)
    return _shared(_onto(likeness.T))


def _onto(likeness: Float[Tensor, "many few"]) -> list[int]:
    """For each of the many one of the few, never going back and leaving none of them out, with the largest sum."""
    few = likeness.shape[1]
    scores = likeness.double()
    best = torch.full((few,), -torch.inf, dtype=scores.dtype)
    best[0] = scores[0, 0]
    stepped = []
    for row in scores[1:]:
        before = torch.cat([best.new_full((1,), -torch.inf), best[:-1]])
        stepped.append(before >= best)
        best = torch.maximum(before, best) + row
    place, found = few - 1, [few - 1]
    for step in reversed(stepped):
        place -= int(step[place])
        found.append(place)
    return found[::-1]


def _grouped(places: list[int], target: int) -> list[Taken]:
    """From the target block of each source block."""
    return [Taken(tuple(n for n, place in enumerate(places) if place == block)) for block in range(target)]


def _shared(blocks: list[int]) -> list[Taken]:
    """From the source block of each target block."""
    return [Taken((block,), 1 / blocks.count(block)) for block in blocks]
