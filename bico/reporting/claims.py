"""Claims about methods, tested on rows of accuracies.

A claim is about the difference of two sides: that one is `more` than the other by a margin, or that both are `alike`
within one. Sides are compared pair by pair: the same task and the same calibration seed (a side that draws nothing,
such as zero-shot, meets every seed of the other).

Seeds of one task are not independent observations: they share the expert, the models and the test pictures. The
differences are therefore averaged over seeds first, and what is tested is their mean over tasks, by one-sided paired
t-tests; `alike` takes two of them (Schuirmann, 1987, doi:10.1007/BF01068419). A signed-rank test would assume less, but
with three tasks it could never reach 5 %. Claims are tested one by one, without correction for their number.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bico.errors import ConfigError
from bico.reporting.rows import Row

LEVEL = 0.05
"""Level of every test."""


class Kind(StrEnum):
    MORE = "more"
    """The left side exceeds the right one by more than the margin."""
    ALIKE = "alike"
    """The sides differ by less than the margin."""


class Verdict(StrEnum):
    HELD = "held"
    NOT_HELD = "not held"
    """The opposite is significant."""
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Outcome:
    """What the rows say about a claim; differences in points, left minus right."""

    verdict: Verdict
    mean: float
    """Over tasks, of the averages over seeds."""
    sd: float
    """Over tasks; NaN for one task."""
    seed_sd: float
    """Over seeds, of the averages over tasks; NaN for one seed."""
    in_favour: int
    """Tasks whose own difference is as claimed."""
    tasks: int
    seeds: int
    p: float
    """Of the opposite; NaN for one task."""


def differences(left: Sequence[Row], right: Sequence[Row]) -> dict[str, dict[int | None, float]]:
    """Returns accuracy differences, left minus right, by task and seed.

    Raises:
        ConfigError: If the sides share no task, or draw with different seeds.
    """
    ours, theirs = _by_place(left), _by_place(right)
    shared = [task for task in ours if task in theirs]
    if not shared:
        raise ConfigError(f"Nothing to compare: one side has {_listed(ours)}, the other {_listed(theirs)}.")
    found: dict[str, dict[int | None, float]] = {}
    for task in shared:
        a, b = ours[task], theirs[task]
        if set(a) == {None} or set(b) == {None}:
            seeds = list(a if set(b) == {None} else b)
        elif set(a) == set(b):
            seeds = list(a)
        else:
            raise ConfigError(f"Nothing to pair on {task}: seeds {_listed(a)} on one side, {_listed(b)} on the other.")
        found[task] = {seed: _accuracy(a, seed) - _accuracy(b, seed) for seed in seeds}
    return found


def evaluate(found: Mapping[str, Mapping[int | None, float]], kind: Kind, margin: float = 0.0) -> Outcome:
    """Tests a claim.

    Arguments:
        found: Differences by task and seed, as of `differences`.
        margin: In points. The least difference for `more` (below zero: how much worse counts as no worse), the bound
            for `alike`.

    Raises:
        ConfigError: If the margin of `alike` is not positive, or a difference is not finite.
    """
    if kind is Kind.ALIKE and margin <= 0:
        raise ConfigError(f"margin={margin}: sides can be alike only within a margin above zero.")
    per_task = [statistics.fmean(seeds.values()) for seeds in found.values()]
    if not all(math.isfinite(d) for d in per_task):
        raise ConfigError("A difference is not finite: the rows are broken.")
    draws = [seed for seed in next(iter(found.values())) if all(seed in seeds for seeds in found.values())]
    averages = [statistics.fmean(seeds[seed] for seeds in found.values()) for seed in draws]
    if kind is Kind.MORE:
        p, opposite = p_above(per_task, margin), _p_below(per_task, margin)
        favour = [d > margin for d in per_task]
    else:
        p = max(p_above(per_task, -margin), _p_below(per_task, margin))
        opposite = min(p_above(per_task, margin), _p_below(per_task, -margin))
        favour = [abs(d) < margin for d in per_task]
    verdict = Verdict.HELD if p < LEVEL else Verdict.NOT_HELD if opposite < LEVEL else Verdict.UNDECIDED
    return Outcome(
        verdict,
        statistics.fmean(per_task),
        _sd(per_task),
        _sd(averages),
        sum(favour),
        len(per_task),
        len(draws),
        p,
    )


def p_above(values: Sequence[float], bound: float, rounding: float = 0.0) -> float:
    """Returns the p of the one-sided t-test that the mean is above a bound; NaN for one value.

    Arguments:
        rounding: Standard deviation that each value has for its own sake, however much the values agree.
    """
    from scipy.stats import t  # slow to import, and only needed here

    if len(values) < 2:
        return math.nan
    gap, sd = statistics.fmean(values) - bound, math.hypot(statistics.stdev(values), rounding)
    if sd == 0:  # all tasks alike: nothing is left to chance
        return 0.0 if gap > 0 else 1.0
    return float(t.sf(gap / (sd / math.sqrt(len(values))), df=len(values) - 1))


def _p_below(values: Sequence[float], bound: float) -> float:
    return p_above([-value for value in values], -bound)


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _by_place(rows: Sequence[Row]) -> dict[str, dict[int | None, float]]:
    found: dict[str, dict[int | None, float]] = {}
    for row in rows:
        found.setdefault(row.task, {})[row.seed] = row.accuracy
    return found


def _accuracy(side: Mapping[int | None, float], seed: int | None) -> float:
    return side[seed] if seed in side else side[None]


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names) or "nothing"
