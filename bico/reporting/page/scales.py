"""Axes of a plot: where a value stands, and which values have a tick."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` between two places on the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value.

        Example:
            >>> Axis(0, 10, 100, 0)(2.5)
            75.0
        """
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Counts:
    """Counts of samples between two places, by their logarithms; no samples at all stand left of the others.

    Example:
        >>> places = Counts((10, 100, 1000), 0, 100)
        >>> [places(n) for n in (10, 100, 1000)]
        [0.0, 50.0, 100.0]
    """

    counts: tuple[int, ...]
    start: float
    end: float

    def __call__(self, count: int) -> float:
        places = [self._log(n) for n in self.counts]
        low, high = min(places), max(places)
        if high == low:
            return (self.start + self.end) / 2
        return self.start + (self._log(count) - low) / (high - low) * (self.end - self.start)

    def _log(self, count: int) -> float:
        least = min((n for n in self.counts if n), default=1)
        return math.log10(count) if count else math.log10(least) - 0.5


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values within a range.

    Example:
        >>> ticks(41.3, 98.9)
        [60.0, 80.0]
    """
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Moves labels down or up until no two are nearer than `least`, within bounds, in their order.

    Example:
        >>> apart([10.0, 12.0, 50.0], 10.0, 0.0, 100.0)
        [10.0, 20.0, 50.0]
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    found, previous, limit = list(places), low - least, high
    for n in order:
        found[n] = previous = max(places[n], previous + least)
    for n in reversed(order):
        found[n] = limit = min(found[n], limit)
        limit -= least
    return found
