"""The one protocol of all methods: from a task vector of the source to a task vector of the target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from bico.calibration.pairing import pair_key
from bico.calibration.signals import Signal, SignalKey
from bico.errors import MethodError
from bico.linalg.rotary import RotaryHeads
from bico.methods.evidence import Evidence, Needs
from bico.methods.settings import HasFields
from bico.models.depth import Depth, take_sites
from bico.models.matching import by_role, check_biases, match_sites
from bico.models.permutations import PermutationGroup
from bico.models.protocol import Calibratable, check_pair
from bico.models.sites import Site, assemble
from bico.task_vector import StateDict


class Others(StrEnum):
    """What happens to parameters that belong to no site: embeddings, patch convolution, layer norms."""

    LEAVE = "leave"
    """They stay as the target has them."""
    ADD = "add"
    """The source's change is added as it is; needs equal shapes."""


class Serves(StrEnum):
    """Which pairs of one family a method can serve."""

    ANY = "any pair"
    ONE_ARCHITECTURE = "one architecture"
    EQUAL_INPUTS = "equal input widths"
    EQUAL_OUTPUTS = "equal output widths"
    WIDER = "a target no narrower"
    NARROWER = "a target no wider"


@dataclass(frozen=True)
class Pair:
    """Source and target as a method sees them: sites, weights and symmetries."""

    source_sites: Sequence[Site]
    target_sites: Sequence[Site]
    source_state: Mapping[str, Tensor]
    target_state: Mapping[str, Tensor]
    source_permutations: Sequence[PermutationGroup] = ()
    target_permutations: Sequence[PermutationGroup] = ()
    heads: tuple[RotaryHeads | None, RotaryHeads | None] = (None, None)
    """Of attention, in source and target, where a family tells."""

    @classmethod
    def of(cls, source: Calibratable, target: Calibratable) -> "Pair":
        check_pair(source, target)
        tables = (source.permutations, target.permutations)
        ours, theirs = (_rotary(getattr(model, "heads", None)) for model in (source, target))
        return cls(source.sites, target.sites, source.state(), target.state(), *tables, (ours, theirs))

    @property
    def matched(self) -> dict[str, Site]:
        """The source site of each target site, by the target site's name.

        Raises:
            MethodError: If a site has no counterpart, or one without the bias that it has.
        """
        found = match_sites(self.source_sites, self.target_sites)
        check_biases(found, self.target_sites)
        return found

    def key(self, ours: Site, theirs: Site, signal: Signal) -> SignalKey:
        """What the map of a signal between two sites of one role is called in the evidence."""
        return pair_key(ours, theirs, self._counterparts[theirs.name], signal)

    @cached_property
    def _counterparts(self) -> dict[str, Site]:
        """By relative depth, of the roles that both models have: an adapter may serve no more."""
        ours = by_role(self.source_sites)
        theirs = [site for role, sites in by_role(self.target_sites).items() if role in ours for site in sites]
        return match_sites(self.source_sites, theirs)


@runtime_checkable  # beartype checks it in the tests
class Method(HasFields, Protocol):
    """A way to carry a task vector over. A frozen dataclass without state; its fields are its settings."""

    name: ClassVar[str]
    """How a run spells it."""
    label: ClassVar[str]
    """How tables and plots call it."""
    colour: ClassVar[str]
    """Of its line in plots, as #rrggbb."""
    reference: ClassVar[str]
    """Paper or place it comes from."""
    serves: ClassVar[Serves]
    carries_expert: ClassVar[bool]
    """Whether the expert's weights are carried over: a method that only looks at the samples is a baseline."""

    @property
    def trained(self) -> str:
        """What of the target it has trained or fitted, for a model card: the subject and verb of a sentence; empty if it
        has trained nothing.
        """
        ...

    @property
    def needs(self) -> Needs:
        """The evidence it asks for; none means that it needs no calibration."""
        ...

    def check(self, pair: Pair) -> None:
        """Makes sure of everything that can be known before any work.

        Raises:
            MethodError: If the method cannot serve this pair, with what to use instead.
        """
        ...

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        """Returns the target's task vector; parameters it does not name stay as they are.

        Arguments:
            tau: The source's task vector, all trainable parameters.
            pair: Both models' sites, states and symmetries.
            evidence: What `needs` names.

        Raises:
            MethodError: If the method cannot serve this pair.
        """
        ...


def _rotary(heads: object) -> RotaryHeads | None:
    return heads if isinstance(heads, RotaryHeads) else None


def check_one_architecture(method: str, pair: Pair) -> None:
    """Raises MethodError, naming the first parameter that differs, unless both models have the same parameters."""
    ours, theirs = ({k: tuple(v.shape) for k, v in s.items()} for s in (pair.source_state, pair.target_state))
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise MethodError(
                f"{method} needs two models of one architecture, but {name} is {ours.get(name, 'missing')} in the "
                f"source and {theirs.get(name, 'missing')} in the target: use an aligned method (bico, theseus), or "
                "zero-pad for a wider target, crop for a narrower one."
            )


def carry_sites(
    tau: Mapping[str, Tensor],
    pair: Pair,
    others: Others,
    carry: Callable[[Site, Site], tuple[Tensor, Tensor | None]],
    depth: Depth = Depth.ONE,
) -> StateDict:
    """Returns the target's task vector, put together of what its sites get.

    Arguments:
        carry: From a site of the source and the target's that it is matched with to the updates of the latter's weight
            (out, in) and bias (out,); None for the bias of a match without one.
        depth: What a site takes of a source of another depth.

    Raises:
        MethodError: If `others` is "add" and a parameter has another shape in the target, or does not exist there.
        ShapeError: If an update does not have its site's shape.
    """
    taken = take_sites(pair.source_sites, pair.target_sites, depth)
    weights: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for site in pair.target_sites:
        for ours in taken[site.name].sites:
            weight, bias = (None if one is None else taken[site.name].share * one for one in carry(ours, site))
            for sums, part in ((weights, weight), (biases, bias)):
                if part is not None:
                    sums[site.name] = sums[site.name] + part if site.name in sums else part
        if (
            site.bias is not None and site.name not in biases
        ):  # the source has none there, and its expert no update of it
            biases[site.name] = torch.zeros_like(site.bias.read(pair.target_state))
    return assemble(weights, biases, pair.target_sites, pair.target_state) | carry_others(tau, pair, others)


def carry_others(tau: Mapping[str, Tensor], pair: Pair, others: Others) -> StateDict:
    """Returns the part of the target's task vector that belongs to no site, by policy.

    Raises:
        MethodError: If `others` is "add" and a parameter has another shape in the target, or does not exist there.
    """
    check_others(pair, others)
    return {name: tau[name].clone() for name in _outside(pair)} if Others(others) is Others.ADD else {}


def check_others(pair: Pair, others: Others) -> None:
    """Raises MethodError if `others` is "add" and a parameter outside the sites does not fit the target."""
    if Others(others) is Others.LEAVE:
        return
    ours, theirs = ({k: tuple(v.shape) for k, v in s.items()} for s in (pair.source_state, pair.target_state))
    for name in _outside(pair):
        if ours.get(name) != theirs[name]:
            raise MethodError(
                f"others=add: {name} is {ours.get(name, 'missing')} in the source and {theirs[name]} in the target; "
                "use others=leave."
            )


def _outside(pair: Pair) -> list[str]:
    """The target's parameters that belong to no site."""
    in_sites = {slot.parameter for site in pair.target_sites for slot in (site.weight, site.bias) if slot is not None}
    return [name for name in pair.target_state if name not in in_sites]
