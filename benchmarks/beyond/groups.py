"""The study's cells as read from their files, and what is averaged over them.

Shares of the gap are (accuracy − zero-shot) / (fine-tuned − zero-shot), in %, of averages over the tasks.
"""

import csv
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.beyond.ask import place_of
from benchmarks.beyond.cells import Place

DEVELOPMENT = ("digits", "mnist", "segments")
"""Tasks that choices were made on."""
CONFIRMATION = ("lamps", "fashion_mnist", "gtsrb", "cifar10")
"""Tasks that were named before looking at them."""

Regime = tuple[str, int, int]
"""(method, labels, unlabelled inputs)."""


@dataclass(frozen=True)
class Cell:
    """All that was measured for one expert and one draw of calibration inputs."""

    place: Place
    accuracy: dict[Regime, float]
    predicted: dict[Regime, float]

    @property
    def task(self) -> str:
        return self.place.task

    @property
    def pair(self) -> str:
        return f"{self.place.source} → {self.place.target}"

    @property
    def zero(self) -> float:
        return self.accuracy["zero-shot", 0, 0]

    @property
    def fine(self) -> float:
        return self.accuracy["fine-tuned", 0, 0]


def read_cells(path: Path) -> list[Cell]:
    """Cells of a file, in its order."""
    cells: dict[Place, Cell] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            cell = cells.setdefault(place_of(row), Cell(place_of(row), {}, {}))
            regime = (row["method"], int(row["samples"]), int(row["pseudo_labelled"]))
            cell.accuracy[regime] = float(row["accuracy"])
            if row["predicted"]:
                cell.predicted[regime] = float(row["predicted"])
    return list(cells.values())


def share(cells: Sequence[Cell], regime: Regime) -> float:
    """Share of the way from zero-shot to fine-tuned, in %, of the averages over cells."""
    gained, gap = (
        statistics.fmean(values)
        for values in zip(*((cell.accuracy[regime] - cell.zero, cell.fine - cell.zero) for cell in cells), strict=True)
    )
    return 100 * gained / gap


def spread(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def over_control(cells: Sequence[Cell], regime: Regime, bare: Regime) -> list[float]:
    """Points over another regime, averaged per task."""
    tasks = dict.fromkeys(cell.task for cell in cells)
    return [statistics.fmean(c.accuracy[regime] - c.accuracy[bare] for c in cells if c.task == task) for task in tasks]


def value_on(axis: str, cell: Cell) -> str:
    """Where a cell stands on the axis of a question."""
    return cell.pair if axis == "target" else str(getattr(cell.place, axis))


def along(axis: str, cells: Sequence[Cell]) -> dict[str, dict[str, list[Cell]]]:
    """Cells by recipe and by value of the axis; a recipe that a cell measures at several data counts at its most."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        for method in dict.fromkeys(method for method, *_ in cell.accuracy):
            found.setdefault(method, {}).setdefault(value_on(axis, cell), []).append(cell)
    return found


def regime_of(cell: Cell, method: str) -> Regime:
    """The data that a cell measured a recipe with; where there were several, the most."""
    return max((regime for regime in cell.accuracy if regime[0] == method), key=lambda regime: regime[1:])


def average(cells: Sequence[Cell], method: str) -> list[float]:
    """Accuracies averaged over tasks, one per expert and draw that measured every task."""
    tasks = {cell.task for cell in cells}
    draws: dict[tuple[int, int], dict[str, float]] = {}
    for cell in cells:
        key = (cell.place.expert, cell.place.seed)
        draws.setdefault(key, {})[cell.task] = cell.accuracy[regime_of(cell, method)]
    return [statistics.fmean(found.values()) for found in draws.values() if set(found) == tasks]


def comparable(axis: str, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by which tasks they are averaged over: all tasks at the values that every task was measured at; and, where
    there are values that only some were (a pool may be too small for them), those tasks at all values.
    """
    known: dict[str, set[str]] = {}
    for cell in cells:
        known.setdefault(cell.task, set()).add(value_on(axis, cell))
    shared, every = set.intersection(*known.values()), set.union(*known.values())
    parts = {"All tasks": [cell for cell in cells if value_on(axis, cell) in shared]}
    whole = [task for task, values in known.items() if values == every]
    if shared != every and whole:
        parts[f"Only {', '.join(whole)}"] = [cell for cell in cells if cell.task in whole]
    return parts


def share_of(cells: Sequence[Cell], method: str) -> float:
    return share(cells, regime_of(cells[0], method))


def axis_values(axis: str, cells: Sequence[Cell]) -> list[str]:
    return sorted({value_on(axis, cell) for cell in cells}, key=_numbers_as_such)


def _numbers_as_such(value: str) -> list[tuple[int, str]]:
    """A model without a number of steps had more of them than those that are named by theirs."""
    value = value if value[-1].isdigit() else f"{value}-{10**9}"
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", value)]
