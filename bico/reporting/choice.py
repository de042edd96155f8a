"""Which of a task's models is worth writing: the best by held-out samples, and how it stands to the untouched target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bico.calibration.budget import Budget
from bico.errors import ConfigError
from bico.methods.spec import Spec
from bico.methods.variant import carries_expert, keeps_vocabulary
from bico.reporting.names import label_of
from bico.reporting.rows import Cell


@dataclass(frozen=True)
class Judged:
    """One cell, measured on held-out samples."""

    cell: Cell
    score: float
    """Percent."""
    start: float
    """The same of the target as it is, on the same samples and by the same kind of classifier."""


@dataclass(frozen=True)
class Choice:
    """The cell whose model is written."""

    cell: Cell
    score: float
    """Percent of the held-out samples."""
    start: float
    """The same of the target as it is."""
    candidates: int
    by: str
    """What the held-out samples are, in words."""

    @property
    def gains(self) -> bool:
        """Whether it is better than the target as it is."""
        return self.score > self.start

    @property
    def sentence(self) -> str:
        """What was chosen and how good it is; a loud one where nothing is better than the target as it is."""
        numbers = f"{self.score:.1f} % against {self.start:.1f} % of the target as it is, by {self.by}"
        if not self.gains:
            return (
                f"WARNING: on {self.cell.task} no model is better than the target as it is: the best of {self.candidates}, "
                f"{self.name}, has {numbers}. Use the target itself."
            )
        rival = "" if carries_expert(self.cell.method) else " It carries nothing of the expert."
        return f"Best of {self.candidates} on {self.cell.task}: {self.name}, {numbers}.{rival}"

    @property
    def name(self) -> str:
        """The cell for people, without its task."""
        drawn = "" if self.cell.seed is None else f", {self.cell.budget}, seed {self.cell.seed}"
        return label_of(self.cell.method) + drawn

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        about = {"task": self.cell.task, "method": str(self.cell.method), "seed": self.cell.seed}
        budget = {"samples": self.cell.budget.asked, "unlabelled": self.cell.budget.unlabelled}
        found = {"held_out": self.score, "untouched": self.start, "candidates": self.candidates, "by": self.by}
        return about | budget | found

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> "Choice":
        """Reads what `to_json` gave.

        Raises:
            KeyError: If something is missing.
        """
        budget = Budget(found["samples"], found["unlabelled"])
        cell = Cell(found["task"], Spec.parse(found["method"]), budget, found["seed"])
        return cls(cell, found["held_out"], found["untouched"], found["candidates"], found["by"])


def choose(judged: Sequence[Judged], by: str) -> Choice:
    """Returns the cell with the highest score. Of equals, one that keeps the open vocabulary comes first, then one that
    carries the expert, then one that has learnt from more; then the one that was asked for first.

    Arguments:
        by: What the held-out samples are (`HeldOut.told`).

    Raises:
        ConfigError: If there is nothing to choose from.
    """
    if not judged:
        raise ConfigError("There is no model to choose from: use --export all or none.")

    def rank(one: Judged) -> tuple[float, bool, bool, Budget]:
        method = one.cell.method
        return one.score, keeps_vocabulary(method), carries_expert(method), one.cell.budget

    best = max(judged, key=rank)  # of equals, the first
    return Choice(best.cell, best.score, best.start, len(judged), by)
