"""The one protocol of all methods: from a task vector of the source to a task vector of the target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from bico.errors import MethodError
from bico.signals import Signal, SignalKey
from bico.sites import Site, match_sites
from bico.task_vector import State


class Others(StrEnum):
    """What happens to parameters that belong to no site: embeddings, patch convolution, layer norms."""

    LEAVE = "leave"
    """They stay as the target has them."""
    ADD = "add"
    """The source's change is added as it is; needs equal shapes."""


@dataclass(frozen=True)
class Pair:
    """Source and target as a method sees them: shapes and sites, no weights of its own choosing."""

    source_sites: Sequence[Site]
    target_sites: Sequence[Site]
    source_state: Mapping[str, Tensor]
    target_state: Mapping[str, Tensor]

    @property
    def matched(self) -> dict[str, Site]:
        """The source site of each target site, by the target site's name."""
        return match_sites(self.source_sites, self.target_sites)

    @property
    def same_architecture(self) -> bool:
        return {k: v.shape for k, v in self.source_state.items()} == {k: v.shape for k, v in self.target_state.items()}


Maps = Callable[[SignalKey], Tensor]
"""Gives the alignment map (source features x target features) of a signal, by the target's signal key."""


@runtime_checkable  # beartype checks it in the tests
class Method(Protocol):
    """A way to carry a task vector over. Frozen, without state; its fields are its settings."""

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper or place it comes from."""
    needs: ClassVar[frozenset[Signal]]
    """The signals whose alignment maps it asks for; none means that it needs no calibration."""

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, maps: Maps) -> State:
        """Returns the target's task vector; parameters it does not name stay as they are.

        Arguments:
            tau: The source's task vector, all trainable parameters.
            pair: Both models' sites and states.
            maps: Alignment maps (source features x target features).

        Raises:
            MethodError: If the method cannot serve this pair.
        """
        ...


def no_maps(key: SignalKey) -> Tensor:
    """The `maps` of a method that declares no needs."""
    raise MethodError(f"No alignment map for {key[1]} of {key[0]}: the method must declare the signal in `needs`.")


def carry_others(tau: Mapping[str, Tensor], pair: Pair, others: Others) -> State:
    """Returns the part of the target's task vector that belongs to no site, by policy.

    Raises:
        MethodError: If `others` is "add" and a parameter has another shape in the target, or does not exist there.
    """
    if Others(others) is Others.LEAVE:
        return {}
    in_sites = {slot.parameter for site in pair.target_sites for slot in (site.weight, site.bias) if slot is not None}
    carried = {}
    for name, current in pair.target_state.items():
        if name in in_sites:
            continue
        if name not in tau or tau[name].shape != current.shape:
            theirs = tuple(tau[name].shape) if name in tau else "missing"
            raise MethodError(
                f"others=add: {name} is {theirs} in the source and {tuple(current.shape)} in the target; use others=leave."
            )
        carried[name] = tau[name].clone()
    return carried
