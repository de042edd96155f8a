"""What was best with a budget of labels and unlabelled inputs, and whether the transfer was worth it.

A difference is said to be one by the standard of `bico.reporting.claims`: one-sided, at 5 %, over tasks where there are
several (seeds of one task are not independent observations), over calibration draws where there is one task. The side
that is said to win was picked as the best of several on the very test data that the test is made on, so the level is
divided by their number (Bonferroni). Budgets are judged one by one.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bico.calibration.budget import Budget
from bico.methods.spec import Spec
from bico.methods.variant import carries_expert, keeps_vocabulary
from bico.reporting.claims import LEVEL, differences, p_above
from bico.reporting.names import label_of
from bico.reporting.references import doubts, is_reference, untouched
from bico.reporting.rows import Row, by_seed, mean_sd


@dataclass(frozen=True)
class Candidate:
    """One way to serve the target, on all tasks."""

    method: Spec
    budget: Budget
    rows: tuple[Row, ...]

    @property
    def by_seed(self) -> dict[int | None, float]:
        """Average accuracy over the tasks, percent; {None: ...} where nothing was drawn."""
        return by_seed(self.rows)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def name(self) -> str:
        """For people: the method, and what it was given where that is less than the regime holds."""
        given = [f"{self.budget.asked} labels"] * bool(self.budget.asked)
        given += [f"{self.budget.unlabelled} unlabelled"] * bool(self.budget.unlabelled)
        return label_of(self.method) + (f" ({', '.join(given)})" if given else "")

    @property
    def measured(self) -> str:
        return f"{self.name}: {mean_sd(list(self.by_seed.values()))} %"


@dataclass(frozen=True)
class Gain:
    """By how much one candidate is better than another, in points."""

    values: tuple[float, ...]
    """Independent observations: one per task where there are several, else one per calibration draw."""
    unit: str
    """What they are: tasks or draws."""
    rounding: float
    """Standard deviation of one value from this alone, that an accuracy is a share of a number of samples: few seeds of
    a coarse measure agree by chance, which is no proof of a spread of zero."""

    @classmethod
    def of(cls, better: Candidate, worse: Candidate) -> "Gain":
        found = differences(better.rows, worse.rows)
        per_task = [statistics.fmean(seeds.values()) for seeds in found.values()]
        rows = (*better.rows, *worse.rows)
        steps = [_step({row.accuracy for row in rows if row.task == task}) for task in found]
        rounding = math.sqrt(statistics.fmean(step**2 / 6 for step in steps))  # step²/12 for each side
        if len(per_task) > 1:
            return cls(tuple(per_task), "tasks", rounding)
        return cls(tuple(*(seeds.values() for seeds in found.values())), "draws", rounding)

    def is_certain(self, picked_from: int) -> bool:
        """Whether the gain is above zero at the level of claims.

        Arguments:
            picked_from: How many candidates the better one is the best of.
        """
        if len(self.values) < 2:
            return False  # nothing is known of the spread
        return self.p < LEVEL / picked_from

    @property
    def p(self) -> float:
        """Of the one-sided test that there is a gain."""
        return p_above(self.values, 0.0, self.rounding)

    def __str__(self) -> str:
        mean, sd = mean_sd(self.values)
        if sd is None:
            return f"{mean:+.1f} points on one task with one draw, which allows no test"
        return f"{mean:+.1f} ± {sd:.1f} points over {len(self.values)} {self.unit}"


def _step(accuracies: Iterable[float]) -> float:
    """The least difference between accuracies of one task: they come in steps of so many points, or of less."""
    return min((b - a for a, b in pairwise(sorted(accuracies))), default=0.0)


def budgets_of(rows: Iterable[Row]) -> list[Budget]:
    """Returns the budgets that rows were measured with, ascending."""
    return sorted({row.budget for row in rows if row.budget})


def candidates(rows: Sequence[Row], budget: Budget) -> list[Candidate]:
    """Returns all that can be done with a budget: rows with its data, with a part of it, or with none; the fine-tuned
    references are left out, and so is a method that lacks a task or a seed.
    """
    tasks, start = {row.task for row in rows}, untouched(rows).spec
    grouped: dict[tuple[Spec, Budget], list[Row]] = {}
    for row in rows:
        if (
            row.budget.asked in (0, budget.asked)
            and row.budget.unlabelled in (0, budget.unlabelled)
            and (not is_reference(row.method) or row.method == start)
        ):
            grouped.setdefault((row.method, row.budget), []).append(row)
    seeds = {row.seed for found in grouped.values() for row in found} - {None}
    return [Candidate(*key, tuple(found)) for key, found in grouped.items() if _is_whole(found, tasks, seeds)]


def _is_whole(rows: Sequence[Row], tasks: set[str], seeds: set[int | None]) -> bool:
    places = {(row.task, row.seed) for row in rows}
    return places in [{(task, seed) for task in tasks for seed in drawn} for drawn in ({None}, seeds)]


def recommend(rows: Sequence[Row], budget: Budget, carries: Callable[[Spec], bool] = carries_expert) -> str:
    """Returns sentences on one budget: what transfer was best, and how it stands to the untouched target and to the best
    without transport.

    The best are found on the very test data whose accuracies are given, so the accuracies flatter a little; the tests
    are made for it.

    Arguments:
        rows: Of one pair, all tasks and seeds.
        budget: Labels and inputs without labels at hand.
        carries: Whether a method carries the expert over, for rows of methods that are not the library's.
    """
    found = candidates(rows, budget)
    zero = next((c for c in found if c.method == untouched(rows).spec), None)
    carried = [c for c in found if carries(c.method)]
    bare = [c for c in found if not carries(c.method) and c is not zero]
    where = _where(budget)
    if not carried:
        return f"{where}: no transfer was measured on every task."
    best = max(carried, key=lambda c: c.mean)
    said = [f"{where} the best transfer was {best.measured}."]
    baseline = max(bare, key=lambda c: c.mean, default=None)
    if zero is not None:
        if zero.mean >= max(c.mean for c in (best, *bare)):
            said[0] = (
                f"{where} nothing beats the target as it is ({zero.mean:.1f} %): the best transfer was {best.measured}."
            )
        said.append(_judged(best, zero, f"the target as it is ({zero.mean:.1f} %)", len(carried), 1))
    if baseline is not None:
        name = f"the best without it ({baseline.measured})"
        said.append(_judged(best, baseline, name, len(carried), len(bare)))
    else:
        said.append("Nothing was measured without transport (`--baselines` does): whether it is worth it is open.")
    return " ".join([*said, *_vocabulary(best, carried)])


def _where(budget: Budget) -> str:
    data = [f"{budget.asked} labels"] * bool(budget.asked)
    data += [f"{budget.unlabelled} unlabelled inputs"] * bool(budget.unlabelled)
    return f"With {' and '.join(data)}" if data else "Without data"


def _judged(best: Candidate, other: Candidate, name: str, transfers: int, others: int) -> str:
    """One sentence: the best transfer beats something, or is not worth it, or neither can be said.

    Arguments:
        transfers: How many the best one was picked from; `others` the same of the other side.
    """
    gain, loss = Gain.of(best, other), Gain.of(other, best)
    if gain.is_certain(transfers):
        return f"It beats {name}, by {gain}."
    if loss.is_certain(others):
        return f"The transfer is not worth it here: {name} is better, by {loss}."
    return f"Whether it is better than {name} is open: {gain}."


def recommendations(rows: Sequence[Row]) -> list[str]:
    """Returns a Markdown bullet for every budget with as many unlabelled inputs as there are."""
    largest = max((row.budget.unlabelled for row in rows), default=0)
    return [f"- {recommend(rows, budget)}" for budget in budgets_of(rows) if budget.unlabelled == largest]


def advice(rows: Sequence[Row]) -> list[str]:
    """Returns the part of a report that says what to do, as paragraphs: doubts of the expert, and what was best where something was
    carried over with data.
    """
    if not any(carries_expert(row.method) and row.budget for row in rows):
        return doubts(rows)
    return [*doubts(rows), "What was best:", "\n".join(recommendations(rows))]


def _vocabulary(best: Candidate, carried: list[Candidate]) -> list[str]:
    """A user may need other classes tomorrow."""
    if keeps_vocabulary(best.method):
        return []
    best_open = max((c for c in carried if keeps_vocabulary(c.method)), key=lambda c: c.mean, default=None)
    if best_open is None:
        return []
    return [f"Of transfers that keep the open vocabulary the best was {best_open.measured}."]
