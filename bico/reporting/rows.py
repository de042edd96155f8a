"""Rows of results: one measured cell each, and their means and spreads over calibration seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bico.calibration.budget import NOTHING, Budget
from bico.methods.spec import Spec


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep: what is done to the target, on which task, with which samples."""

    task: str
    method: Spec
    """The method with its last steps, or the reference."""
    budget: Budget = NOTHING
    """Nothing for methods that need no samples."""
    seed: int | None = None
    """Calibration seed; None where nothing was drawn."""

    @property
    def label(self) -> str:
        """Such as "digits/bico/N=100/seed=0"."""
        return f"{self.task}/{self.method}" + ("" if self.seed is None else f"/{self.budget}/seed={self.seed}")

    @property
    def folder(self) -> str:
        """The name under which its model is written, such as "digits-bico-n100-seed0"."""
        more = f"-u{self.budget.unlabelled}" * bool(self.budget.unlabelled)
        drawn = "" if self.seed is None else f"-n{self.budget.asked}{more}-seed{self.seed}"
        return f"{self.task}-{self.method.filename}{drawn}"


@dataclass(frozen=True)
class Row(Cell):
    """One measured cell."""

    accuracy: float = field(kw_only=True)
    """Percent of the test split."""
    measures: Mapping[str, float] = field(kw_only=True, default_factory=dict, compare=False)
    """Where there are several measures, all of them by name; that which stands for the model is among them."""

    @classmethod
    def of(cls, cell: Cell, accuracy: float, measures: Mapping[str, float] | None = None) -> "Row":
        return cls(cell.task, cell.method, cell.budget, cell.seed, accuracy=accuracy, measures=dict(measures or {}))

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Row":
        """Reads a line of a table as transfers and recipes write it, from CSV or JSON; older ones have no column
        `unlabelled`.

        Raises:
            KeyError: If a column is missing; TypeError or ValueError if a value is no number.
        """
        seed = record["seed"]
        return cls(
            record["task"],
            Spec.parse(record["method"]),
            Budget(int(record["samples"]), int(record.get("unlabelled") or 0)),
            None if seed in (None, "") else int(seed),
            accuracy=float(record["accuracy"]),
        )

    def record(self) -> dict[str, Any]:
        """The row as plain values by column: for CSV, JSON and MLflow."""
        return {
            "task": self.task,
            "method": str(self.method),
            "samples": self.budget.asked,
            "seed": self.seed,
            "accuracy": self.accuracy,
            "unlabelled": self.budget.unlabelled,
        }

    @property
    def cell(self) -> Cell:
        return Cell(self.task, self.method, self.budget, self.seed)


COLUMNS = ("task", "method", "samples", "seed", "accuracy", "unlabelled")
"""Of a table of rows, in order."""


class Mean(NamedTuple):
    """A mean, and the spread of what it is the mean of.

    Example:
        >>> str(mean_sd([50.0, 52.0])), str(mean_sd([50.0]))
        ('51.0 ± 1.4', '50.0')
    """

    mean: float
    sd: float | None
    """Standard deviation of a sample (n - 1); None for a single value, which has none."""

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.sd is None else f"{self.mean:.1f} ± {self.sd:.1f}"


@dataclass(frozen=True)
class Summary:
    """Accuracies of one method at one budget, in percent."""

    method: Spec
    budget: Budget
    per_task: dict[str, Mean]
    """Mean and standard deviation over seeds."""
    average: Mean
    """Mean over tasks and seeds, and the standard deviation over seeds of the average over tasks."""
    seeds: int


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Returns one summary per method and budget, in the order of the rows.

    A seed that lacks a task counts with the
    tasks that it has.
    """
    grouped: dict[tuple[Spec, Budget], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.method, row.budget), []).append(row)
    summaries = []
    for (method, budget), group in grouped.items():
        tasks = list(dict.fromkeys(row.task for row in group))
        per_task = {task: mean_sd([row.accuracy for row in group if row.task == task]) for task in tasks}
        averages = list(by_seed(group).values())
        summaries.append(Summary(method, budget, per_task, mean_sd(averages), len(averages)))
    return summaries


def by_seed(rows: Iterable[Row]) -> dict[int | None, float]:
    """The average over tasks of each seed that was measured, in percent."""
    found: dict[int | None, list[float]] = {}
    for row in rows:
        found.setdefault(row.seed, []).append(row.accuracy)
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def mean_sd(values: Sequence[float]) -> Mean:
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
