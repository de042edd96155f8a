"""Two runs side by side: did transfers to the new release come out better?

Runs are compared cell by cell: the same task, method, calibration samples and seed. Deltas are in points, the second
run less the first. The test is that of `bico.reporting.claims`: deltas are averaged over seeds and sample counts first, since
those share the expert, the models and the test pictures, and what is tested is their mean over tasks.
"""

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from bico.errors import ConfigError, nearest
from bico.methods.spec import Spec
from bico.reporting import claims
from bico.reporting.names import label_of
from bico.reporting.references import is_reference
from bico.reporting.rows import Cell, Row


class Answer(StrEnum):
    """What is said of the second run."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


_ANSWERS = {
    claims.Verdict.HELD: Answer.BETTER,
    claims.Verdict.NOT_HELD: Answer.WORSE,
    claims.Verdict.UNDECIDED: Answer.UNDECIDED,
}


@dataclass(frozen=True)
class PairedCell:
    """One cell of a sweep in both runs; accuracies in percent."""

    task: str
    samples: int
    seed: int | None
    before: float
    after: float

    @property
    def delta(self) -> float:
        """In points."""
        return self.after - self.before


@dataclass(frozen=True)
class Compared:
    """One method in both runs."""

    method: Spec
    unlabelled: int
    """Inputs without labels that it was given."""
    cells: tuple[PairedCell, ...]
    outcome: claims.Outcome

    @property
    def label(self) -> str:
        """For people."""
        return label_of(self.method) + f", {self.unlabelled} unlabelled" * bool(self.unlabelled)

    @property
    def answer(self) -> Answer:
        return _ANSWERS[self.outcome.verdict]

    @property
    def sd(self) -> float | None:
        """Of the deltas over cells, in points; None for one cell."""
        return statistics.stdev(cell.delta for cell in self.cells) if len(self.cells) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Two runs, method by method, and the method that the answer is about."""

    methods: dict[str, Compared]
    """By spelling, with the number of unlabelled inputs where there are some."""
    about: str
    alone: tuple[int, int]
    """Cells that only the first run has, and only the second."""

    @property
    def answer(self) -> Answer:
        return self.methods[self.about].answer

    @property
    def cells(self) -> int:
        """Cells in both runs."""
        return sum(len(one.cells) for one in self.methods.values())

    @property
    def moved(self) -> int:
        """Cells whose accuracy differs at all, and cells that only one of the runs has."""
        return sum(bool(cell.delta) for one in self.methods.values() for cell in one.cells) + sum(self.alone)

    @property
    def sentence(self) -> str:
        """The answer for people."""
        found = self.methods[self.about].outcome
        numbers = f"{found.mean:+.2f} points for {self.methods[self.about].label}"
        if not any(cell.delta for cell in self.methods[self.about].cells):
            return f"Neither: both runs agree in each cell ({len(self.methods[self.about].cells)})."
        if found.tasks < 2:
            return f"Undecided: {numbers}, on one task, which allows no test of what other tasks would do."
        test = f"mean of {found.tasks} tasks, sd {found.sd:.2f}, one-sided p = {_p(self.methods[self.about]):.3g}"
        lead = {
            Answer.BETTER: "Yes, the second run is better",
            Answer.WORSE: "No, the second run is worse",
            Answer.UNDECIDED: "Undecided",
        }[self.answer]
        return f"{lead}: {numbers} ({test})."

    def to_json(self) -> dict[str, Any]:
        methods = {
            name: {
                "answer": found.answer.value,
                "mean": found.outcome.mean,
                "sd_tasks": _finite(found.outcome.sd),
                "sd_cells": found.sd,
                "p_better": _finite(found.outcome.p),
                "cells": [asdict(cell) | {"delta": cell.delta} for cell in found.cells],
            }
            for name, found in self.methods.items()
        }
        alone = {"first": self.alone[0], "second": self.alone[1]}
        return {"answer": self.answer.value, "about": self.about, "sentence": self.sentence, "methods": methods} | {
            "only_in": alone
        }


def compare(before: Sequence[Row], after: Sequence[Row], about: str | None = None, margin: float = 0.0) -> Comparison:
    """Pairs the cells of two runs and tests whether the second is better.

    Arguments:
        before: Rows of the first run, say of transfers to the last release.
        after: Rows of the second.
        about: The method that the answer is about; the first that is no reference (such as zero-shot) if None.
        margin: In points; how much better counts as better.

    Raises:
        ConfigError: If the runs share no cell, or none of that method.
    """
    ours, theirs = _by_cell(before), _by_cell(after)
    shared = [cell for cell in ours if cell in theirs]
    if not shared:
        raise ConfigError(
            f"Nothing to compare: no cell (task, method, N, seed) is in both runs. The first has {_listed(before)}; "
            f"the second has {_listed(after)}."
        )
    methods: dict[str, Compared] = {}
    for method, unlabelled in dict.fromkeys((cell.method, cell.budget.unlabelled) for cell in shared):
        cells = tuple(
            PairedCell(cell.task, cell.budget.asked, cell.seed, ours[cell], theirs[cell])
            for cell in shared
            if (cell.method, cell.budget.unlabelled) == (method, unlabelled)
        )
        outcome = claims.evaluate(_differences(cells), claims.Kind.MORE, margin)
        spelling = str(method) + f", {unlabelled} unlabelled" * bool(unlabelled)
        methods[spelling] = Compared(method, unlabelled, cells, outcome)
    if about is None:
        carried = (name for name, one in methods.items() if not is_reference(one.method))
        about = next(carried, next(iter(methods)))
    if about not in methods:
        raise ConfigError(f"Method {about!r} is not in both runs; {nearest(about, methods)}")
    return Comparison(methods, about, (len(ours) - len(shared), len(theirs) - len(shared)))


def comparison_table(found: Comparison) -> str:
    """Returns the comparison in Markdown: a line per method, then one per cell of the method in question."""
    lines = [
        "| method | cells | delta | sd over cells | tasks better | p | the second run is |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in found.methods.values():
        p = "–" if one.outcome.tasks < 2 else f"{_p(one):.3g}"
        counts = f"{one.outcome.in_favour} of {one.outcome.tasks}"
        sd = "–" if one.sd is None else f"{one.sd:.2f}"
        lines.append(
            f"| {one.label} | {len(one.cells)} | {one.outcome.mean:+.2f} | {sd} | {counts} | {p} | {one.answer} |"
        )
    lines += ["", f"{found.methods[found.about].label}, cell by cell:", ""]
    lines += ["| task | N | seed | first | second | delta |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for c in found.methods[found.about].cells:
        seed = "–" if c.seed is None else c.seed
        lines.append(f"| {c.task} | {c.samples or '–'} | {seed} | {c.before:.2f} | {c.after:.2f} | {c.delta:+.2f} |")
    if any(found.alone):
        lines += ["", f"Left out: {found.alone[0]} cells of the first run and {found.alone[1]} of the second only."]
    return "\n".join(lines)


def read_rows(lines: Iterable[str], origin: str) -> list[Row]:
    """Reads rows from CSV, as transfers and recipes write it; a recipe's transfers become part of the tasks' names.

    Raises:
        ConfigError: If it is no such table.
    """
    try:
        return [
            Row.parse(r | {"task": f"{r['transfer']}: {r['task']}"} if r.get("transfer") else r)
            for r in csv.DictReader(lines)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{origin}: not a table of results that `bico` wrote ({error!r}).") from error


def _differences(cells: Iterable[PairedCell]) -> dict[str, dict[int | None, float]]:
    """Deltas by task and seed, averaged over sample counts."""
    grouped: dict[str, dict[int | None, list[float]]] = {}
    for cell in cells:
        grouped.setdefault(cell.task, {}).setdefault(cell.seed, []).append(cell.delta)
    return {task: {seed: statistics.fmean(deltas) for seed, deltas in seeds.items()} for task, seeds in grouped.items()}


def _by_cell(rows: Iterable[Row]) -> dict[Cell, float]:
    return {row.cell: row.accuracy for row in rows}


def _listed(rows: Sequence[Row]) -> str:
    methods = dict.fromkeys(label_of(row.method) for row in rows)
    tasks, samples = dict.fromkeys(row.task for row in rows), sorted({row.budget.asked for row in rows} - {0})
    return f"{', '.join(methods) or 'no method'} on {', '.join(tasks) or 'no task'} at N={samples}"


def _p(one: Compared) -> float:
    """Of the one-sided test in the direction of the mean."""
    if one.outcome.sd == 0:  # nothing is left to chance
        return 1.0 if one.answer is Answer.UNDECIDED else 0.0
    return min(one.outcome.p, 1 - one.outcome.p)


def _finite(value: float) -> float | None:
    return value if value == value else None
