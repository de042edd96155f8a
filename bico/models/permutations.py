"""Which permutations of a model's features go together: a family's symmetries, as a table.

A group is one permutation and all the places where it acts; permuting all of them leaves the model's function as it
is. The table form is that of git re-basin (Ainsworth et al., 2023, arXiv:2209.04836).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from bico.models.sites import Slot
from bico.task_vector import StateDict


@dataclass(frozen=True)
class SlotAxis:
    """One axis of one tensor."""

    slot: Slot
    axis: int


@dataclass(frozen=True)
class PermutationGroup:
    """Features that can only be reordered together."""

    name: str
    size: int
    places: tuple[SlotAxis, ...]
    heads: int | None = None
    """Of attention features: they move as whole heads, and inside each head."""


Permutations = dict[str, Int[Tensor, " size"]]
"""By group name: the new feature i is the old feature `permutation[i]`."""


def identities(groups: Iterable[PermutationGroup]) -> Permutations:
    return {group.name: torch.arange(group.size) for group in groups}


def axes_of(groups: Iterable[PermutationGroup]) -> dict[Slot, dict[int, str]]:
    """Returns which group permutes which axis of every tensor of the table."""
    axes: dict[Slot, dict[int, str]] = {}
    for group in groups:
        for place in group.places:
            axes.setdefault(place.slot, {})[place.axis] = group.name
    return axes


def permute(tensor: Tensor, axes: Mapping[int, str], permutations: Mapping[str, Tensor]) -> Tensor:
    """Returns a tensor with the given axes reordered by their groups' permutations."""
    for axis, name in axes.items():
        tensor = tensor.index_select(axis, permutations[name].to(tensor.device))
    return tensor


def permute_state(
    state: Mapping[str, Tensor], groups: Iterable[PermutationGroup], permutations: Mapping[str, Tensor]
) -> StateDict:
    """Returns a state or a task vector in the permuted basis; what no group names is copied as it is."""
    result = {name: tensor.clone() for name, tensor in state.items()}
    for slot, axes in axes_of(groups).items():
        slot.write(result, permute(slot.read(state), axes, permutations))
    return result
