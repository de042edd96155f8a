"""The alignment maps of a calibrated pair: what each artefact of them is made of, and reading them at one budget."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from bico.calibration.budget import Budget
from bico.calibration.pairing import is_beside
from bico.calibration.signals import Signal, SignalKey, signal_key
from bico.linalg.procrustes import RANK_TOLERANCE, AlignmentMap, MapRule
from bico.linalg.sketch import Cross, added
from bico.methods.evidence import undeclared
from bico.models.sites import Site
from storage.keys import Ref, artefact_key
from tasks.artefacts import array_name, iterate_covariances, iterate_maps
from tasks.cached_stage import Workspace

VERSION = 3
"""Of the stage that solves them, `tasks/procrustes.py`."""


@dataclass(frozen=True)
class SignalMaps:
    """The maps of one signal by one rule in one block of a calibrated pair, at every budget: one artefact."""

    covariances: Ref | None
    """Of labelled samples; None without any."""
    group: str
    """The block's name."""
    signal: Signal
    tensors: tuple[str, ...]
    """The tensors of the block that carry the signal."""
    counts: tuple[int, ...]
    """Labelled samples, as asked for."""
    rule: MapRule
    pseudo_labelled: tuple[Ref, int] | None = None
    """Covariances of unlabelled inputs and their number, which are added at every count."""

    @classmethod
    def of(
        cls,
        covariances: Ref | None,
        signal: Signal,
        sites: Iterable[Site],
        group: str,
        counts: Iterable[int],
        rule: MapRule,
        pseudo_labelled: tuple[Ref, int] | None = None,
        others: tuple[str, ...] = (),
    ) -> Self:
        """Arguments:
        others: In place of the tensors of the sites, what pairs besides counterparts are called.
        """
        tensors = dict.fromkeys(others or (signal_key(site, signal)[0] for site in sites if site.group == group))
        return cls(covariances, group, signal, tuple(tensors), tuple(counts), rule, pseudo_labelled)

    @property
    def beside(self) -> bool:
        """Whether they are of pairs besides counterparts, which sums over blocks take."""
        return any(is_beside(tensor) for tensor in self.tensors)

    @property
    def key(self) -> str:
        more: dict[str, object] = {}
        if self.pseudo_labelled is not None:
            more = {"pseudo_labelled": self.pseudo_labelled[0], "unlabelled": self.pseudo_labelled[1]}
        return artefact_key(
            "procrustes",
            VERSION,
            covariances=self.covariances,
            group=self.group,
            signal=self.signal,
            tensors=list(self.tensors),
            samples=list(self.counts),
            rule=self.rule,
            rtol=RANK_TOLERANCE,
            **more,
        )

    def names(self, count: int) -> list[str]:
        """The arrays at one count, in the order of the tensors."""
        return [array_name(tensor, self.signal, count) for tensor in self.tensors]

    @property
    def inputs(self) -> tuple[Ref, ...]:
        """What they are solved from."""
        unlabelled = () if self.pseudo_labelled is None else (self.pseudo_labelled[0],)
        return (() if self.covariances is None else (self.covariances,)) + unlabelled

    def crosses(self) -> Iterator[tuple[str, Cross]]:
        """The covariances by array name, one in memory at a time. Losses are summed over samples, so those of unlabelled
        inputs are added.
        """
        places = [(tensor, count) for tensor in self.tensors for count in self.counts]
        names = [array_name(tensor, self.signal, count) for tensor, count in places]
        labelled = [name for name, (_, count) in zip(names, places, strict=True) if count]
        found = iterate_covariances(self.covariances, labelled) if labelled and self.covariances else iter(())
        if self.pseudo_labelled is None:
            yield from found
            return
        ref, number = self.pseudo_labelled
        theirs = iterate_covariances(ref, [array_name(tensor, self.signal, number) for tensor, _ in places])
        for name, (_, count), (_, total) in zip(names, places, theirs, strict=True):
            yield name, added(total, next(found)[1]) if count else total


@dataclass(frozen=True)
class BlockMaps:
    """All maps of one block: one task. Every signal and rule is an artefact, so another method adds only its own."""

    group: str
    parts: tuple[SignalMaps, ...]

    def is_complete(self, space: Workspace) -> bool:
        return all(space.artefacts.is_complete(part.key) for part in self.parts)


def by_covariances(parts: Iterable[SignalMaps]) -> list[list[SignalMaps]]:
    """Parts that differ in their rule only share one reading of their covariances."""
    alike: dict[SignalMaps, list[SignalMaps]] = {}
    for part in parts:
        alike.setdefault(replace(part, rule=MapRule()), []).append(part)
    return list(alike.values())


class StoredMaps:
    """The maps of a calibrated pair at one budget; each artefact is opened when a method first asks for it."""

    def __init__(self, space: Workspace, parts: Iterable[SignalMaps], budget: Budget) -> None:
        self._parts = {(tensor, part.signal, part.rule): part for part in parts for tensor in part.tensors}
        self._space, self._count = space, budget.asked
        self._read: dict[tuple[str, Signal, MapRule], AlignmentMap] = {}

    def __call__(self, key: SignalKey, rule: MapRule) -> AlignmentMap:
        place = (*key, rule)
        if place not in self._read:
            if place not in self._parts:
                raise undeclared(f"alignment map ({rule.completion}) for the {key[1]} of {key[0]}")
            part = self._parts[place]
            stored = iterate_maps(self._space.artefacts.ref(part.key), part.names(self._count))
            self._read |= {(t, *place[1:]): found for t, (_, found) in zip(part.tensors, stored, strict=True)}
        return self._read[place]
