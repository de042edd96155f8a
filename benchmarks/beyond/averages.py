"""What is averaged over the study's cells.

Shares of the gap are (accuracy − zero-shot) / (fine-tuned − zero-shot), in %, of averages over the tasks.
"""

import re
import statistics
from collections.abc import Sequence

from benchmarks.beyond.measured import MeasuredCell, Regime
from benchmarks.beyond.questions import PAIRS
from bico.methods.spec import Spec

Cells = Sequence[MeasuredCell]


def share(cells: Cells, regime: Regime) -> float:
    """Share of the way from zero-shot to fine-tuned, in %, of the averages over cells."""
    gained, gap = (
        statistics.fmean(values)
        for values in zip(*((cell.accuracy[regime] - cell.zero, cell.fine - cell.zero) for cell in cells), strict=True)
    )
    return 100 * gained / gap


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sd, as tables show it."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def over(cells: Cells, regime: Regime, other: Regime | None) -> list[float]:
    """Points over another regime, cell by cell where both were measured."""
    return [
        cell.accuracy[regime] - cell.accuracy[other]
        for cell in cells
        if other is not None and {regime, other} <= cell.accuracy.keys()
    ]


def over_by_task(cells: Cells, regime: Regime, other: Regime) -> list[float]:
    """Points over another regime, averaged per task."""
    tasks = dict.fromkeys(cell.task for cell in cells)
    return [statistics.fmean(over([cell for cell in cells if cell.task == task], regime, other)) for task in tasks]


def value_on(axis: str, cell: MeasuredCell) -> str:
    """Where a cell stands on the axis of a question."""
    return cell.pair if axis == PAIRS else str(getattr(cell.setting, axis))


def along(axis: str, cells: Cells) -> dict[Spec, dict[str, list[MeasuredCell]]]:
    """Cells by recipe and by value of the axis; a recipe that a cell measures at several data counts at its most."""
    found: dict[Spec, dict[str, list[MeasuredCell]]] = {}
    for cell in cells:
        for method in cell.methods:
            found.setdefault(method, {}).setdefault(value_on(axis, cell), []).append(cell)
    return found


def regime_of(cell: MeasuredCell, method: Spec) -> Regime:
    """The data that a cell measured a recipe with; where there were several, the most."""
    return max((regime for regime in cell.accuracy if regime.method == method), key=lambda regime: regime.budget)


def average(cells: Cells, method: Spec) -> list[float]:
    """Accuracies averaged over tasks, one per expert and draw that measured every task."""
    tasks = {cell.task for cell in cells}
    draws: dict[tuple[int, int], dict[str, float]] = {}
    for cell in cells:
        key = (cell.setting.expert, cell.setting.seed)
        draws.setdefault(key, {})[cell.task] = cell.accuracy[regime_of(cell, method)]
    return [statistics.fmean(found.values()) for found in draws.values() if set(found) == tasks]


def comparable(axis: str, cells: Cells) -> dict[str, list[MeasuredCell]]:
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


def axis_values(axis: str, cells: Cells) -> list[str]:
    """The values that cells were measured at, ascending."""
    return sorted({value_on(axis, cell) for cell in cells}, key=_numbers_as_such)


def _numbers_as_such(value: str) -> list[tuple[int, str]]:
    """A model without a number of steps had more of them than those that are named by theirs."""
    value = value if value[-1].isdigit() else f"{value}-{10**9}"
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", value)]
