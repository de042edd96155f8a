"""What was best with a budget of labels and unlabelled inputs, and whether the transfer was worth it."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bico.calibration.budget import Budget
from bico.methods.spec import Spec
from bico.methods.variant import carries_expert, keeps_vocabulary
from bico.reporting.names import label_of
from bico.reporting.references import doubts, is_reference, untouched
from bico.reporting.rows import Row
from bico.reporting.tables import mean_cell


@dataclass(frozen=True)
class Candidate:
    """One way to serve the target, averaged over the tasks."""

    method: Spec
    budget: Budget
    by_seed: dict[int | None, float]
    """Average accuracy over the tasks, percent; {None: ...} where nothing was drawn."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_seed.values())

    @property
    def name(self) -> str:
        """For people: the method, and what it was given where that is less than the regime holds."""
        given = [f"{self.budget.asked} labels"] * bool(self.budget.asked)
        given += [f"{self.budget.unlabelled} unlabelled"] * bool(self.budget.unlabelled)
        return label_of(self.method) + (f" ({', '.join(given)})" if given else "")

    def over(self, other: "Candidate") -> list[float]:
        """Differences, paired by seed; what was not drawn serves every seed."""
        return [self._at(seed) - other._at(seed) for seed in _seeds(self, other)]

    def _at(self, seed: int | None) -> float:
        return self.by_seed[seed if seed in self.by_seed else None]


def budgets_of(rows: Iterable[Row]) -> list[Budget]:
    """Returns the budgets that rows were measured with, ascending."""
    return sorted({row.budget for row in rows if row.budget})


def candidates(rows: Sequence[Row], budget: Budget) -> list[Candidate]:
    """Returns all that can be done with a budget: rows with its data, with a part of it, or with none; the fine-tuned
    references are left out, and so is a method that lacks a task or a seed.
    """
    tasks, start = {row.task for row in rows}, untouched(rows).spec
    grouped: dict[tuple[Spec, Budget], dict[int | None, dict[str, float]]] = {}
    for row in rows:
        if (
            row.budget.asked in (0, budget.asked)
            and row.budget.unlabelled in (0, budget.unlabelled)
            and (not is_reference(row.method) or row.method == start)
        ):
            grouped.setdefault((row.method, row.budget), {}).setdefault(row.seed, {})[row.task] = row.accuracy
    seeds = {seed for found in grouped.values() for seed in found} - {None}
    return [
        Candidate(*key, {seed: statistics.fmean(found.values()) for seed, found in by_seed.items()})
        for key, by_seed in grouped.items()
        if all(set(found) == tasks for found in by_seed.values()) and set(by_seed) in ({None}, seeds)
    ]


def recommend(rows: Sequence[Row], budget: Budget, carries: Callable[[Spec], bool] = carries_expert) -> str:
    """Returns sentences on one budget: what was best, what was best without transport, and by how much, paired over seeds.

    A difference counts where its mean is more than twice its standard error over seeds. The best are found on the very
    test data whose accuracies are given, so they flatter a little.

    Arguments:
        rows: Of one pair, all tasks and seeds.
        budget: Labels and inputs without labels at hand.
        carries: Whether a method carries the expert over, for rows of methods that are not the library's.
    """
    found = candidates(rows, budget)
    zero = next((c for c in found if c.method == untouched(rows).spec), None)
    carried = [c for c in found if carries(c.method)]
    bare = [c for c in found if not carries(c.method) and c is not zero]
    data = " and ".join(
        [f"{budget.asked} labels"] * bool(budget.asked)
        + [f"{budget.unlabelled} unlabelled inputs"] * bool(budget.unlabelled)
    )
    where = f"With {data}" if data else "Without data"
    if not carried:
        return f"{where}: no transfer was measured on every task."
    best = max(carried, key=lambda c: c.mean)
    said = [f"{where} the best transfer was {_measured(best)}."]
    if not bare:
        said.append(
            "Nothing was measured without transport (`--baselines` does): whether the transfer is worth it is open."
        )
        return " ".join([*said, *_vocabulary(best, carried)])
    baseline = max(bare, key=lambda c: c.mean)
    gain = best.over(baseline)
    without = f"the best without it, {_measured(baseline)}"
    if zero is not None and zero.mean >= max(best.mean, baseline.mean):
        return f"{where} nothing beats the target as it is ({zero.mean:.1f} %): {said[0]}"
    if _counts(gain):
        said.append(f"It beats {without}, by {_spread(gain)} points.")
    elif _counts([-value for value in gain]):
        said.append(f"The transfer is not worth it here: {without}, is better by {_spread([-v for v in gain])} points.")
    else:
        said.append(
            f"Whether the transfer is worth it is open: {without}, is within the spread ({_spread(gain)} points)."
        )
    return " ".join([*said, *_vocabulary(best, carried)])


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
    open_ones = [c for c in carried if keeps_vocabulary(c.method)]
    return [
        f"Of transfers that keep the open vocabulary the best was {_measured(max(open_ones, key=lambda c: c.mean))}."
    ] * bool(open_ones)


def _seeds(*both: Candidate) -> list[int | None]:
    drawn = sorted({seed for c in both for seed in c.by_seed if seed is not None})
    return [*drawn] or [None]


def _counts(differences: list[float]) -> bool:
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return False  # no spread is known
    return mean > 2 * statistics.stdev(differences) / len(differences) ** 0.5 and mean > 0


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:+.1f}, one seed"
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values):.1f}"


def _measured(candidate: Candidate) -> str:
    values = list(candidate.by_seed.values())
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{candidate.name}: {mean_cell((candidate.mean, spread), len(values))} %"
