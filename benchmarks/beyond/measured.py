"""The study's files: a line per recipe and cell; and the cells that are read from them."""

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.beyond.setting import Setting
from bico.calibration.budget import NOTHING, Budget
from bico.methods.spec import Spec
from bico.reporting.references import FINE_TUNED, ZERO_SHOT


class Regime(NamedTuple):
    """A recipe, or a reference, and how many samples it looked at."""

    method: Spec
    budget: Budget = NOTHING

    @property
    def control(self) -> "Regime | None":
        """The same last steps without transport, at the same data."""
        bare = self.method.control
        return None if bare is None else Regime(bare, self.budget)


@dataclass(frozen=True)
class Line:
    """One measured recipe of one cell."""

    setting: Setting
    regime: Regime
    accuracy: float
    """Percent."""
    predicted: float | None = None
    """First-order gain on the labelled samples, nats (`bico.reporting.predicted_gain`)."""

    def record(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self.setting) | {
            "method": str(self.regime.method),
            "samples": self.regime.budget.asked,
            "pseudo_labelled": self.regime.budget.unlabelled,
            "accuracy": round(self.accuracy, 3),
            "predicted": self.predicted,
        }


@dataclass(frozen=True)
class MeasuredCell:
    """All that was measured for one expert and one draw of calibration inputs."""

    setting: Setting
    accuracy: dict[Regime, float]
    predicted: dict[Regime, float]

    @property
    def task(self) -> str:
        return self.setting.task

    @property
    def pair(self) -> str:
        return self.setting.pair

    @property
    def zero(self) -> float:
        return self.accuracy[Regime(ZERO_SHOT.spec)]

    @property
    def fine(self) -> float:
        return self.accuracy[Regime(FINE_TUNED.spec)]

    @property
    def methods(self) -> list[Spec]:
        return list(dict.fromkeys(regime.method for regime in self.accuracy))


def append(path: Path, lines: Sequence[Line]) -> None:
    """Writes a cell's lines in one piece, so that a stop leaves whole cells."""
    fresh, records = not path.is_file(), [line.record() for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(records)
        file.flush()
        os.fsync(file.fileno())


def read_cells(path: Path) -> list[MeasuredCell]:
    """Cells of a file, in its order; none without a file."""
    cells: dict[Setting, MeasuredCell] = {}
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            setting = Setting.parse(row)
            cell = cells.setdefault(setting, MeasuredCell(setting, {}, {}))
            budget = Budget(int(row["samples"]), int(row["pseudo_labelled"]))
            regime = Regime(Spec.parse(row["method"]), budget)
            cell.accuracy[regime] = float(row["accuracy"])
            if row["predicted"]:
                cell.predicted[regime] = float(row["predicted"])
    return list(cells.values())
