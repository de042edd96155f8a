"""Tables of what was measured: means, spreads over draws, shares of the gap."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shares.pairs import PAIRS, QUESTIONS, Pair


@dataclass(frozen=True)
class Cell:
    """Accuracies in %, by method and draw, of one pair, task, expert and N."""

    pair: str
    task: str
    samples: int
    found: dict[str, dict[int, float]]

    def mean(self, method: str) -> float:
        return statistics.fmean(self.found[method].values())

    @property
    def base(self) -> str:
        return "target-probe" if PAIRS[self.pair].probed else "zero-shot"

    @property
    def top(self) -> str:
        return "fine-tuned, probed" if PAIRS[self.pair].probed else "fine-tuned"


def cells(out: Path) -> Iterator[Cell]:
    """What was measured."""
    for name, pair in PAIRS.items():
        for task in pair.tasks:
            for expert in pair.experts:
                if (place := out / f"{name}-{task}-{expert}.json").is_file():
                    yield from _cells_of(name, task, json.loads(place.read_text())["rows"])


def _cells_of(name: str, task: str, rows: list[dict]) -> Iterator[Cell]:
    free: dict[str, dict[int, float]] = defaultdict(dict)
    bound: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        kept = bound[row["samples"]][row["method"]] if row.get("samples") else free[row["method"]]
        kept[row.get("seed") or 0] = row["accuracy"]
    for samples, found in sorted(bound.items()):
        if samples in PAIRS[name].samples:
            yield Cell(name, task, samples, {**free, **found})


def share(some: list[Cell], method: str) -> float:
    """How much of the way from the untouched to the fine-tuned target a method goes, in %, of averages over cells."""
    gained = statistics.fmean(cell.mean(method) - cell.mean(cell.base) for cell in some)
    return 100 * gained / statistics.fmean(cell.mean(cell.top) - cell.mean(cell.base) for cell in some)


def accuracy(some: list[Cell], method: str) -> str:
    """Mean over tasks and experts ± sd over draws of that mean."""
    seeds = sorted(set.intersection(*(set(cell.found[method]) for cell in some)))
    draws = [statistics.fmean(cell.found[method][seed] for cell in some) for seed in seeds]
    return f"{statistics.fmean(draws):.1f}" + (f" ± {statistics.stdev(draws):.1f}" if len(draws) > 1 else "")


def table(question: str, out: Path) -> str:
    """A part per pair and kind of task, a row per method, accuracy and share of the gap at each N."""
    every, methods = list(cells(out)), QUESTIONS[question]
    lines = [
        f"# {question}",
        "",
        f"Made by `python -m benchmarks.shares {question} PAIR` and `... {question} table`.",
        "",
    ]
    parts = list(_parts(every))
    for name, kind, here in parts:
        tasks = ", ".join(dict.fromkeys(cell.task for cell in here))
        lines += [f"## {name}, {kind}: {tasks}", "", *_part(here, PAIRS[name], methods), ""]
    return "\n".join([*lines, f"## Points over {methods[0]}, all N", "", *_summary(parts, methods)])


def _parts(every: list[Cell]) -> Iterator[tuple[str, str, list[Cell]]]:
    for name, pair in PAIRS.items():
        for kind, tasks in (("development", pair.development), ("confirmation", pair.confirmation)):
            if here := [cell for cell in every if cell.pair == name and cell.task in tasks]:
                yield name, kind, here


def _part(here: list[Cell], pair: Pair, methods: tuple[str, ...]) -> Iterator[str]:
    columns = [[cell for cell in here if cell.samples == n] for n in pair.samples]
    yield f"| | {' | '.join(f'N={n}' for n in pair.samples)} |"
    yield f"| --- |{' ---: |' * len(columns)}"
    for method in [here[0].base, here[0].top, *methods]:
        if any(method in cell.found for cell in here):
            yield f"| {method} | {' | '.join(_shown(column, method) for column in columns)} |"


def _shown(column: list[Cell], method: str) -> str:
    if not column or not all(method in cell.found for cell in column):
        return ""
    gap = has_gap(column) and method not in (column[0].base, column[0].top)
    return accuracy(column, method) + (f" ({share(column, method):.0f} %)" if gap else "")


def has_gap(here: list[Cell]) -> bool:
    """Whether it was measured what the fine-tuned target reaches."""
    return all(cell.top in cell.found for cell in here)


def _summary(parts: list[tuple[str, str, list[Cell]]], methods: tuple[str, ...]) -> Iterator[str]:
    """By pair and kind of task; with shares of the gap where the fine-tuned target was measured."""
    first, *others = methods
    yield f"| pair, tasks | {first} | {' | '.join(others)} |"
    yield f"| --- |{' ---: |' * len(methods)}"
    for name, kind, here in parts:
        shown = []
        for method in methods:
            if not all(method in cell.found for cell in here):
                shown.append("")
                continue
            points = statistics.fmean(cell.mean(method) - cell.mean(first) for cell in here)
            part = f"{share(here, method):.0f} %" if has_gap(here) else ""
            shown.append(part if method == first else f"{points:+.1f}" + (f" ({part})" if part else ""))
        yield f"| {name}, {kind} | {' | '.join(shown)} |"
