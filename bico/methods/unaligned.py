"""Controls without any alignment: add as it is, pad with zeros, crop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bico.errors import MethodError
from bico.methods.evidence import Evidence, Needs
from bico.methods.protocol import Others, Pair, Serves, carry_sites, check_one_architecture, check_others
from bico.models.sites import Site
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Naive:
    """Copies the source's task vector as it is, every parameter of it: `θ_B + τ_A`. Identical architectures only."""

    name: ClassVar[str] = "naive"
    label: ClassVar[str] = "naive"
    colour: ClassVar[str] = "#6b7280"
    reference: ClassVar[str] = "copy: task arithmetic without alignment (BiCo, table 3)"
    serves: ClassVar[Serves] = Serves.ONE_ARCHITECTURE
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, pair: Pair) -> None:
        check_one_architecture(self.name, pair)

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)
        return {name: tensor.clone() for name, tensor in tau.items()}


@dataclass(frozen=True)
class _Corner(ABC):
    """Puts each site's update into the upper left corner of the target's weight; blocks matched by depth."""

    others: Others = Others.LEAVE

    @property
    def needs(self) -> Needs:
        return Needs()

    @abstractmethod
    def check_site(self, ours: Site, theirs: Site) -> None:
        """Raises MethodError if the update does not fit the target by this method."""

    def check(self, pair: Pair) -> None:
        matched = pair.matched
        for site in pair.target_sites:
            self.check_site(matched[site.name], site)
        check_others(pair, self.others)

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)

        def carry(ours: Site, site: Site) -> tuple[Tensor, Tensor | None]:
            weight = corner(ours.weight.read(tau), site.shape)
            if site.bias is None or ours.bias is None:  # a match has both or none
                return weight, None
            return weight, corner(ours.bias.read(tau), site.shape[:1])

        return carry_sites(tau, pair, self.others, carry)


class ZeroPad(_Corner):
    """Fills a wider target up with zeros (BiCo, table 1)."""

    name: ClassVar[str] = "zero-pad"
    label: ClassVar[str] = "zero-pad"
    colour: ClassVar[str] = "#15803d"
    reference: ClassVar[str] = "zero-padding (BiCo, table 1)"
    serves: ClassVar[Serves] = Serves.WIDER
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    def check_site(self, ours: Site, theirs: Site) -> None:
        if theirs.shape[0] < ours.shape[0] or theirs.shape[1] < ours.shape[1]:
            raise MethodError(
                f"zero-pad: {theirs.name} is {theirs.shape}, narrower than the source's {ours.shape}; use crop."
            )


class Crop(_Corner):
    """Cuts the update down to a narrower target (BiCo, appendix, table D)."""

    name: ClassVar[str] = "crop"
    label: ClassVar[str] = "crop"
    colour: ClassVar[str] = "#a16207"
    reference: ClassVar[str] = "cropping (BiCo, table D)"
    serves: ClassVar[Serves] = Serves.NARROWER
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    def check_site(self, ours: Site, theirs: Site) -> None:
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
