"""What calibration gathers for a method, and how a method asks for it."""

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.scales import Scale, Scales, Side
from bico.calibration.signals import Signal, SignalKey
from bico.errors import MethodError
from bico.linalg.procrustes import RANK_TOLERANCE, AlignmentMap, MapRule, procrustes
from bico.linalg.sketch import Cross


@dataclass(frozen=True)
class Needs:
    """The evidence that a method asks for; empty (and false) for a method without calibration."""

    maps: frozenset[tuple[Signal, MapRule]] = frozenset()
    """Alignment maps, of both models' signals."""
    gradients: frozenset[ParameterGradient] = frozenset()
    """Statistics of the target's parameter gradients."""
    scales: bool = False
    """How large what the sites of both models read and give is."""
    beside: frozenset[tuple[Signal, MapRule]] = frozenset()
    """Alignment maps between a target's sites and those of other source blocks that a sum takes: of pairs of other depths."""

    def __bool__(self) -> bool:
        return bool(self.maps or self.gradients or self.scales)

    def __or__(self, other: "Needs") -> "Needs":
        both = self.maps | other.maps, self.gradients | other.gradients
        return Needs(*both, self.scales or other.scales, self.beside | other.beside)

    @property
    def signals(self) -> dict[Signal, int | None]:
        """The signals to collect, each with the most directions that any of its maps is made of; None for all."""
        return most_directions(self.maps)

    @property
    def grams(self) -> frozenset[Signal]:
        """Signals whose Gram matrices some map is made of."""
        return frozenset(signal for signal, rule in self.maps | self.beside if rule.whiten)


@runtime_checkable  # beartype checks it in the tests
class Evidence(Protocol):
    """Gives a method what its `needs` name, all from the same calibration samples.

    Raises:
        MethodError: From all of them, if the method asks for what it did not declare.
    """

    samples: int
    """How many; 0 without calibration."""

    def map(self, key: SignalKey, rule: MapRule) -> AlignmentMap:
        """The alignment map (source features x target features) of a signal, by the target's signal key; between sites that are
        no counterparts by what their pair is called (`Pair.key`).
        """
        ...

    def gradient(self, kind: ParameterGradient) -> Mapping[str, Tensor]:
        """A statistic of the target's loss gradients, by parameter."""
        ...

    def scale(self, side: Side, key: SignalKey) -> Scale:
        """How large the rows of a signal of one of the models are, by that model's own signal key."""
        ...


@dataclass
class Gathered:
    """Evidence in memory; a map is solved when a method first asks for it."""

    samples: int = 0
    covariances: MutableMapping[SignalKey, Cross] = field(default_factory=dict)
    gradients: Mapping[ParameterGradient, Mapping[str, Tensor]] = field(default_factory=dict)
    scales: Mapping[Side, Scales] = field(default_factory=dict)
    rtol: float = RANK_TOLERANCE
    wanted: frozenset[tuple[Signal, MapRule]] | None = None
    """All maps that will be asked for. A covariance is then let go of with the last map that is made of it, so that maps
    and covariances are never all in memory at once; without it they are kept."""

    def __post_init__(self) -> None:
        self._solved: dict[tuple[SignalKey, MapRule], AlignmentMap] = {}

    def map(self, key: SignalKey, rule: MapRule) -> AlignmentMap:
        if (key, rule) not in self._solved:
            if key not in self.covariances:
                raise undeclared(f"alignment map ({rule.completion}) for the {key[1]} of {key[0]}")
            self._solved[key, rule] = procrustes(self.covariances[key], rule, self.rtol)
            if self.wanted is not None and all((key, r) in self._solved for s, r in self.wanted if s is key[1]):
                del self.covariances[key]
        return self._solved[key, rule]

    def gradient(self, kind: ParameterGradient) -> Mapping[str, Tensor]:
        if kind not in self.gradients:
            raise undeclared(f"parameter gradients ({kind})")
        return self.gradients[kind]

    def scale(self, side: Side, key: SignalKey) -> Scale:
        if key not in self.scales.get(side, {}):
            raise undeclared(f"scale of the {key[1]} of {key[0]} in the {side}")
        return self.scales[side][key]


def most_directions(maps: Iterable[tuple[Signal, MapRule]]) -> dict[Signal, int | None]:
    """Returns, for each signal, the most directions that any of its maps is made of; None for all.

    Example:
        >>> most_directions([(Signal.INPUT, MapRule(rank=8)), (Signal.INPUT, MapRule(rank=64))])
        {<Signal.INPUT: 'input'>: 64}
    """
    found: dict[Signal, int | None] = {}
    for signal, rule in sorted(maps):
        before = found.get(signal, 0)
        found[signal] = None if before is None or rule.collected is None else max(before, rule.collected)
    return found


def undeclared(what: str) -> MethodError:
    """The error for evidence that nobody gathered."""
    return MethodError(f"No {what}: the method must declare it in `needs`.")
