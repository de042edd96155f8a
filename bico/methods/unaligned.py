"""Controls without any alignment: add as it is, pad with zeros, crop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bico.errors import MethodError
from bico.methods.protocol import Maps, Others, Pair, carry_others
from bico.signals import Signal
from bico.sites import Site, assemble
from bico.task_vector import State


class Naive:
    """Adds the source's task vector as it is, every parameter of it: `θ_B + τ_A`. Identical architectures only."""

    name: ClassVar[str] = "naive"
    source: ClassVar[str] = "task arithmetic without alignment (BiCo, table 3)"
    needs: ClassVar[frozenset[Signal]] = frozenset()

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, maps: Maps) -> State:
        if not pair.same_architecture:
            name = next(
                (
                    k
                    for k, v in pair.source_state.items()
                    if k not in pair.target_state or pair.target_state[k].shape != v.shape
                ),
                "a parameter of the target",
            )
            raise MethodError(
                f"naive needs two models of one architecture, but {name} differs: use zero-pad for a wider target, "
                "crop for a narrower one, or an aligned method."
            )
        return {name: tensor.clone() for name, tensor in tau.items()}


@dataclass(frozen=True)
class _Corner(ABC):
    """Puts each site's update into the upper left corner of the target's weight; blocks matched by depth."""

    others: Others = Others.LEAVE
    needs: ClassVar[frozenset[Signal]] = frozenset()

    @abstractmethod
    def check(self, ours: Site, theirs: Site) -> None:
        """Raises MethodError if the update does not fit the target by this method."""

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, maps: Maps) -> State:
        matched = pair.matched
        weights, biases = {}, {}
        for site in pair.target_sites:
            ours = matched[site.name]
            self.check(ours, site)
            weights[site.name] = corner(ours.weight.read(tau), site.shape)
            if site.bias is not None:
                biases[site.name] = corner(ours.bias.read(tau), site.shape[:1])
        return assemble(weights, biases, pair.target_sites, pair.target_state) | carry_others(tau, pair, self.others)


class ZeroPad(_Corner):
    """Fills a wider target up with zeros (BiCo, table 1)."""

    name: ClassVar[str] = "zero-pad"
    source: ClassVar[str] = "zero-padding (BiCo, table 1)"

    def check(self, ours: Site, theirs: Site) -> None:
        if theirs.shape[0] < ours.shape[0] or theirs.shape[1] < ours.shape[1]:
            raise MethodError(
                f"zero-pad: {theirs.name} is {theirs.shape}, narrower than the source's {ours.shape}; use crop."
            )


class Crop(_Corner):
    """Cuts the update down to a narrower target (BiCo, appendix, table D)."""

    name: ClassVar[str] = "crop"
    source: ClassVar[str] = "cropping (BiCo, table D)"

    def check(self, ours: Site, theirs: Site) -> None:
        if theirs.shape[0] > ours.shape[0] or theirs.shape[1] > ours.shape[1]:
            raise MethodError(
                f"crop: {theirs.name} is {theirs.shape}, wider than the source's {ours.shape}; use zero-pad."
            )


def corner(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns a tensor of `shape` that agrees with `tensor` where both have entries and is zero elsewhere.

    Example:
        >>> import torch
        >>> corner(torch.tensor([1.0, 2.0]), (3,))
        tensor([1., 2., 0.])
    """
    result = tensor.new_zeros(shape)
    overlap = tuple(slice(min(a, b)) for a, b in zip(tensor.shape, shape, strict=True))
    result[overlap] = tensor[overlap]
    return result
