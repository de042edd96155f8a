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
        """The tensor as the site sees it: a weight as (out, in), whatever 1x1 window a convolution adds behind."""
        tensor = state[self.parameter][self.start : self.stop]
        if tensor.ndim > 2 and all(size == 1 for size in tensor.shape[2:]):
            tensor = tensor.flatten(1)
        return tensor.T if self.transposed else tensor

    def write(self, state: StateDict, value: Tensor) -> None:
        place = state[self.parameter][self.start : self.stop]
        place.copy_((value.T if self.transposed else value).reshape(place.shape))


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
    stack: str = ""
    """Which stack of blocks, in a model that has several: each is matched by its own depth."""
    feature_axis: int = -1
    """Where the features lie in what the site reads and gives: -3 for a convolution over (batch, features, height, width)."""

    @property
    def group(self) -> str:
        """The block's name: the unit in which alignment maps are solved."""
        place = "head" if self.block is None else f"block-{self.block}"
        return f"{self.stack}-{place}" if self.stack else place


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
    """Returns the source site of every target site: of the same stack and role, and of the matched block.

    Blocks are matched by depth among those that have the role.

    Raises:
        MethodError: If the target has a role that the source lacks, such as another family's, or only one of two sites
            has a bias.
    """
    target = list(target)
    ours, theirs = _by_role(source), _by_role(target)
    matched: dict[str, Site] = {}
    for role, sites in theirs.items():
        if role not in ours:
            raise MethodError(
                f"Target site {sites[0].name} (role {sites[0].role}) has no counterpart in the source: source and target "
                "must be of the same family."
            )
        blocks = match_blocks(len(ours[role]), len(sites))
        matched |= {site.name: ours[role][block] for site, block in zip(sites, blocks, strict=True)}
    for site in target:
        if (matched[site.name].bias is None) != (site.bias is None):
            with_bias, without = ("source", "target") if site.bias is None else ("target", "source")
            raise MethodError(
                f"Site {site.name} has a bias in the {with_bias} and none in the {without}, so an update of it has no "
                "counterpart: leave the site out, or give both models biases."
            )
    return {site.name: matched[site.name] for site in target}


def _by_role(sites: Iterable[Site]) -> dict[tuple[str, bool, str], list[Site]]:
    """The sites of each stack and role, by depth; those behind the blocks are apart."""
    found: dict[tuple[str, bool, str], list[Site]] = {}
    for site in sites:
        found.setdefault((site.stack, site.block is None, site.role), []).append(site)
    return {role: sorted(members, key=lambda site: site.block or 0) for role, members in found.items()}


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
