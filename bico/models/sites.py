"""Sites: the linear maps of a model, where their numbers live, and which of two models' sites belong together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bico.errors import MethodError, ShapeError
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a site lives: rows `start:stop` of a parameter, or all of it."""

    parameter: str
    start: int | None = None
    stop: int | None = None
    transposed: bool = False
    """Stored as (in, out), as CLIP's `proj` is; the site's own orientation is always (out, in)."""

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        tensor = state[self.parameter][self.start : self.stop]
        return tensor.T if self.transposed else tensor

    def write(self, state: StateDict, value: Tensor) -> None:
        state[self.parameter][self.start : self.stop] = value.T if self.transposed else value


@dataclass(frozen=True)
class Site:
    """One linear map `y = W x + b` of a model, with `W` of shape (out, in)."""

    name: str
    block: int | None
    """Index of the transformer block; None behind the last block (CLIP's `proj`)."""
    role: str
    """q k v out_proj c_fc c_proj proj ..."""
    weight: Slot
    bias: Slot | None
    reads: str
    """Name of the tensor the site reads; sites that share it (q, k, v) share its covariance and its map."""
    shape: tuple[int, int]
    """(out, in)."""

    @property
    def group(self) -> str:
        """The block's name: the unit in which alignment maps are solved."""
        return "head" if self.block is None else f"block-{self.block}"


def match_blocks(source: int, target: int) -> list[int]:
    """Returns, for each of the target's blocks, the source block it takes its update from.

    Target block j takes source block round(j (L_source - 1) / (L_target - 1)) (BiCo, section 5.3): order is kept,
    first goes to first and last to last, blocks repeat where the target is deeper and are skipped where it is
    shallower. Halves are rounded up.

    Example:
        >>> match_blocks(source=3, target=5)
        [0, 1, 1, 2, 2]
        >>> match_blocks(source=5, target=3)
        [0, 2, 4]
    """
    if source < 1 or target < 1:
        raise ShapeError(f"Blocks to match must be at least one on each side, got {source} and {target}.")
    if target == 1:
        return [source - 1]  # the last block carries the task's features to the head
    # floor(x + 1/2) in integers; Python's round() would send halves to the even neighbour.
    return [(2 * j * (source - 1) + target - 1) // (2 * (target - 1)) for j in range(target)]


def match_sites(source: Iterable[Site], target: Iterable[Site]) -> dict[str, Site]:
    """Returns the source site of every target site, by role and matched block.

    Raises:
        MethodError: If the target has a role that the source lacks, such as another family's.
    """
    source, target = list(source), list(target)
    by_place = {(site.block, site.role): site for site in source}
    blocks = match_blocks(_depth(source), _depth(target))
    matched = {}
    for site in target:
        place = (None if site.block is None else blocks[site.block], site.role)
        if place not in by_place:
            raise MethodError(
                f"Target site {site.name} (role {site.role}) has no counterpart in the source: source and target must "
                "be of the same family."
            )
        matched[site.name] = by_place[place]
    return matched


def _depth(sites: list[Site]) -> int:
    return 1 + max(site.block for site in sites if site.block is not None)


def assemble(
    weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], sites: Iterable[Site], like: Mapping[str, Tensor]
) -> StateDict:
    """Returns per-site updates as parameters: slices of a fused parameter are put together again.

    Arguments:
        weights: Update of each site's weight, (out, in), by site name.
        biases: Update of each site's bias, (out,), by site name, for the sites that have one.
        sites: The sites to fill, all of them.
        like: The target's parameters, for shapes.

    Raises:
        ShapeError: If an update does not have its site's shape.
    """
    sites = list(sites)
    slots = [(s.name, s.weight, weights[s.name]) for s in sites]
    slots += [(s.name, s.bias, biases[s.name]) for s in sites if s.bias is not None]
    # NaN marks what no slice has filled: a forgotten part of a fused parameter must not pass for "no update".
    state = {slot.parameter: torch.full_like(like[slot.parameter], torch.nan) for _, slot, _ in slots}
    for name, slot, value in slots:
        if slot.read(state).shape != value.shape:
            raise ShapeError(
                f"Update of site {name} has shape {tuple(value.shape)}, but {slot.parameter} takes "
                f"{tuple(slot.read(state).shape)} there."
            )
        slot.write(state, value.to(state[slot.parameter]))
    for parameter, tensor in state.items():
        if tensor.isnan().any():
            raise ShapeError(f"Part of {parameter} was left without an update: a site is missing or its update is NaN.")
    return state
