"""The one form of every analysis' results: a number, and where it was measured."""

import statistics
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from jaxtyping import Float
from torch import Tensor

from bico.calibration.signals import Signal, signal_key
from bico.models.sites import Site

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Measurement:
    """One number. The last four fields are the caller's, who knows which pair and draw it is."""

    quantity: str
    """Such as "cka", "cosine", "direction", "determined"."""
    series: str
    """What is compared: "before" or "after" the map, a method, a signal."""
    tensor: str
    """What was measured: the name of a site, or of the tensor that sites read."""
    layer: int | None
    """Index of the transformer block; None behind the last one."""
    value: float
    at: float | None = None
    """Place on the quantity's own axis: the optimiser step of a drift, the share of directions in a spectrum."""
    pair: str = ""
    task: str = ""
    samples: int = 0
    """Calibration samples; 0 where none were drawn."""
    seed: int | None = None


class Curve(NamedTuple):
    """Means over everything but one axis, with the least and the largest of what each is the mean of."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def curve(records: Iterable[Measurement], axis: str = "layer") -> Curve:
    """Averages measurements over tensors, tasks and seeds at each place of an axis, in ascending order.

    Arguments:
        axis: "layer" or "at"; measurements without a place there are left out.

    Example:
        >>> curve([Measurement("cka", "before", name, 0, value) for name, value in [("q", 0.5), ("v", 1.0)]]).mean
        [0.75]
    """
    groups: dict[float, list[float]] = {}
    for record in records:
        if (place := getattr(record, axis)) is not None:
            groups.setdefault(place, []).append(record.value)
    x = sorted(groups)
    return Curve(x, *([reduce(groups[place]) for place in x] for reduce in (statistics.fmean, min, max)))


def layer_of_tensors(sites: Sequence[Site], signals: Iterable[Signal]) -> dict[str, int | None]:
    """Returns the block of every tensor that carries one of the signals."""
    return {signal_key(site, signal)[0]: site.block for signal in signals for site in sites}


class RowMeans(Generic[K]):
    """Running means over rows, by key; sums in float64."""

    def __init__(self) -> None:
        self._sums: dict[K, float] = {}
        self._counts: dict[K, int] = {}

    def add(self, key: K, values: Float[Tensor, " rows"]) -> None:
        self._sums[key] = self._sums.get(key, 0.0) + float(values.double().sum())
        self._counts[key] = self._counts.get(key, 0) + len(values)

    def means(self) -> Mapping[K, float]:
        return {key: total / self._counts[key] for key, total in self._sums.items()}


def by_series(records: Iterable[Measurement], quantity: str) -> Iterator[tuple[str, list[Measurement]]]:
    """Yields the measurements of a quantity, series by series, in the order in which these first come."""
    groups: dict[str, list[Measurement]] = {}
    for record in records:
        if record.quantity == quantity:
            groups.setdefault(record.series, []).append(record)
    yield from groups.items()
