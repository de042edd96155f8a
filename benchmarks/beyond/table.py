"""Makes the page and the plot of one question of the study from its cells.

    python -m benchmarks.beyond.table QUESTION

writes QUESTION.md, and QUESTION.png where the question has an axis, beside benchmarks/beyond/QUESTION.csv. Accuracies are
means ± sd over a pair's experts and calibration draws. Shares of the gap are (accuracy − zero-shot) / (fine-tuned −
zero-shot), in %, of averages over the tasks. A control is the same last steps without transport; differences to it are
paired cell by cell.
"""

import csv
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.beyond.ask import HERE, QUESTIONS, Question, place_of
from benchmarks.beyond.cells import REFERENCES, Place
from bico.chain import control, get_chain
from bico.provenance import machine
from bico.recommend import recommend
from bico.report import COLOURS, Row, method_label

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
            regime = (row["method"], int(row["samples"]), int(row["taught"]))
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


def accuracy_table(cells: Sequence[Cell]) -> str:
    """One pair: a line per recipe and regime, a column per task, the share of the gap, and the control's difference."""
    tasks = [task for task in (*DEVELOPMENT, *CONFIRMATION) if any(cell.task == task for cell in cells)]
    regimes = list(dict.fromkeys(regime for cell in cells for regime in cell.accuracy))
    regimes.sort(key=lambda regime: (regime[1:] != (0, 0), regime[2], regime[1] == 0))
    lines = [
        f"| recipe | N | unlabelled | {' | '.join(tasks)} | share of the gap | over its control |",
        "| --- |" + " ---: |" * (len(tasks) + 4),
    ]
    for regime in regimes:
        method, samples, unlabelled = regime
        held = [cell for cell in cells if regime in cell.accuracy]
        per_task = [spread([cell.accuracy[regime] for cell in held if cell.task == task]) for task in tasks]
        closed = "" if method == "expert" else f"{share(held, regime):.0f} %"
        bare = (control(method), samples, unlabelled)
        paired = [cell.accuracy[regime] - cell.accuracy[bare] for cell in held if bare in cell.accuracy]
        counts = [str(n) if n else "–" for n in (samples, unlabelled)]
        over = spread(paired, "+") if paired else ""
        lines.append(f"| {' | '.join([method_label(method), *counts, *per_task, closed, over])} |")
    return "\n".join(lines)


def in_short(cells: Sequence[Cell]) -> str:
    """A line per recipe and regime over all tasks of a kind: shares of the gap, beside plain BiCo's, and what transport adds.

    Differences to the control are averaged per task first; in favour: tasks where that is above zero.
    """
    kinds = [[cell for cell in cells if cell.task in chosen] for chosen in (DEVELOPMENT, CONFIRMATION)]
    lines = [
        "| recipe | N | unlabelled | development | confirmation | of plain BiCo's, confirmation | over its control, "
        "confirmation | in favour |",
        "| --- |" + " ---: |" * 7,
    ]
    regimes = list(dict.fromkeys(regime for cell in cells for regime in cell.accuracy))
    for regime in sorted(regimes, key=lambda regime: (regime[2], regime[1] == 0)):
        method, samples, unlabelled = regime
        if method in REFERENCES or not all(regime in cell.accuracy for cell in cells):
            continue
        dev, conf = (share(kind, regime) for kind in kinds)
        times = conf / share(kinds[1], ("bico", samples, unlabelled))
        bare = (control(method), samples, unlabelled)
        over, favour = "", ""
        if all(bare in cell.accuracy for cell in kinds[1]):
            gains = over_control(kinds[1], regime, bare)
            over, favour = spread(gains, "+"), f"{sum(gain > 0 for gain in gains)}/{len(gains)}"
        counts = [str(n) if n else "–" for n in (samples, unlabelled)]
        cells_ = [method_label(method), *counts, f"{dev:.0f} %", f"{conf:.0f} %", f"{times:.2f}", over, favour]
        lines.append(f"| {' | '.join(cells_)} |")
    return "\n".join(lines)


def over_control(cells: Sequence[Cell], regime: Regime, bare: Regime) -> list[float]:
    """Points over another regime, averaged per task."""
    tasks = dict.fromkeys(cell.task for cell in cells)
    return [statistics.fmean(c.accuracy[regime] - c.accuracy[bare] for c in cells if c.task == task) for task in tasks]


def advice(cells: Sequence[Cell]) -> str:
    """The product's own sentences; experts and draws are its seeds."""
    rows = [
        Row(
            c.task,
            method,
            samples,
            10 * c.place.expert + c.place.seed if samples or unlabelled else None,
            value,
            unlabelled,
        )
        for c in cells
        for (method, samples, unlabelled), value in c.accuracy.items()
    ]
    regimes = sorted({(row.samples, row.unlabelled) for row in rows if row.samples})
    return "\n".join(f"- {recommend(rows, *regime)}" for regime in regimes)


def prediction(cells: Iterable[Cell]) -> list[str]:
    """Does the first-order gain tell where a transfer will gain? Rank correlation over cells."""
    cells = list(cells)
    lines = []
    for regime in dict.fromkeys(regime for cell in cells for regime in cell.predicted):
        pairs = [(c.predicted[regime], c.accuracy[regime] - c.zero) for c in cells if regime in c.predicted]
        if len(pairs) > 3:
            found = spearmanr(*zip(*pairs, strict=True))
            name = f"{method_label(regime[0])}, N={regime[1]}" + f", {regime[2]} unlabelled" * bool(regime[2])
            lines.append(f"- {name}: ρ = {found.statistic:.2f} over {len(pairs)} cells (p = {found.pvalue:.2g})")
    return lines


def by_task(cells: Sequence[Cell], regime: Regime) -> str:
    """Distance of a task from pre-training, told by what the target knows of it: a line per task, nearest last."""
    method, samples, unlabelled = regime
    lines = [
        f"{method_label(method)}, N={samples}, {unlabelled} unlabelled:\n",
        "| task | zero-shot | fine-tuned | gain | share of the gap | over its control |",
        "| --- |" + " ---: |" * 5,
    ]
    groups = {task: [c for c in cells if c.task == task] for task in dict.fromkeys(c.task for c in cells)}
    for task, held in sorted(groups.items(), key=lambda item: statistics.fmean(c.zero for c in item[1])):
        zero, fine = (spread([value]) for value in (held[0].zero, held[0].fine))
        gains = spread([c.accuracy[regime] - c.zero for c in held], "+")
        bare = (control(method), samples, unlabelled)
        over = spread([c.accuracy[regime] - c.accuracy[bare] for c in held if bare in c.accuracy], "+")
        lines.append(f"| {task} | {zero} | {fine} | {gains} | {share(held, regime):.0f} % | {over} |")
    return "\n".join(lines)


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


def axis_table(axis: str, cells: Sequence[Cell]) -> str:
    """A line per recipe, a column per value of the axis: the average over tasks, with the share of the gap closed."""
    found, values = along(axis, cells), axis_values(axis, cells)
    lines = [f"| recipe | {' | '.join(values)} |", "| --- |" + " ---: |" * len(values)]
    for method, groups in found.items():
        written = []
        for value in values:
            held = groups.get(value, [])
            part = f" ({share_of(held, method):.0f} %)" if held and method not in REFERENCES else ""
            written.append(spread(average(held, method)) + part if held else "–")
        lines.append(f"| {method_label(method)} | {' | '.join(written)} |")
    return "\n".join(lines)


def gain_table(axis: str, cells: Sequence[Cell]) -> str:
    """What transport adds to each recipe along the axis: points over its control, averaged per task; mean ± sd over tasks."""
    values = axis_values(axis, cells)
    lines = [f"| points over the control | {' | '.join(values)} |", "| --- |" + " ---: |" * len(values)]
    for method in dict.fromkeys(method for cell in cells for method, *_ in cell.accuracy):
        bare, written = control(method), []
        for value in values:
            held = [cell for cell in cells if value_on(axis, cell) == value]
            held = [c for c in held if {method, bare} <= {known for known, *_ in c.accuracy}]
            if not held:
                continue
            regime = regime_of(held[0], method)
            gains = over_control(held, regime, regime_of(held[0], bare))
            written.append(f"{spread(gains, '+')} ({sum(gain > 0 for gain in gains)}/{len(gains)})")
        if len(written) == len(values):
            lines.append(f"| {method_label(method)} | {' | '.join(written)} |")
    return "\n".join(lines)


def share_of(cells: Sequence[Cell], method: str) -> float:
    return share(cells, regime_of(cells[0], method))


def axis_values(axis: str, cells: Sequence[Cell]) -> list[str]:
    return sorted({value_on(axis, cell) for cell in cells}, key=_numbers_as_such)


def _numbers_as_such(value: str) -> list[tuple[int, str]]:
    """A model without a number of steps had more of them than those that are named by theirs."""
    value = value if value[-1].isdigit() else f"{value}-{10**9}"
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", value)]


def plot_axis(axis: str, cells: Sequence[Cell], ax: Axes) -> Axes:
    """Average accuracy along the axis: a transfer as a full line, its control or rival dashed in the same colour."""
    found, values = along(axis, cells), axis_values(axis, cells)
    steps = dict.fromkeys(step(method) for method in found)
    colours = {name: f"C{place}" for place, name in enumerate(steps)} | {"": COLOURS["bico"]}
    shown = [method for method in found if method != "expert"]
    for place, method in enumerate(shown):
        # Pairs have no order: nothing connects them, and marks stand side by side.
        aside = 0.05 * (place - len(shown) / 2) if axis == "target" else 0.0
        points = sorted((values.index(v) + aside, average(held, method)) for v, held in found[method].items())
        bare = method.startswith("none") or method in ("theseus", *REFERENCES)
        ax.errorbar(
            [x for x, _ in points],
            [statistics.fmean(found) for _, found in points],
            [statistics.stdev(found) if len(found) > 1 else 0 for _, found in points],
            label=method_label(method),
            color="grey" if method in REFERENCES else COLOURS.get(method, colours[step(method)]),
            ls="" if axis == "target" else ":" if method == "zero-shot" else "--" if bare else "-",
            marker={"zero-shot": "v", "fine-tuned": "^"}.get(method, "o"),
            mfc="white" if bare else None,
            ms=5,
            capsize=3,
        )
    ax.set_xticks(range(len(values)), [value.replace(" → ", "\n→ ") for value in values])
    ax.set(xlabel=AXES[axis], ylabel="test accuracy, average over tasks (%)")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax


def plot(axis: str, cells: Sequence[Cell]) -> Figure:
    """A panel for each set of tasks that can be compared."""
    parts = comparable(axis, cells)
    figure = Figure(figsize=(8, 4.5 * len(parts)), layout="constrained")
    for (title, part), ax in zip(parts.items(), figure.subplots(len(parts), squeeze=False)[:, 0], strict=True):
        plot_axis(axis, part, ax).set_title(title, fontsize=9)
    return figure


def step(method: str) -> str:
    """The last steps of a recipe."""
    return method.partition("+")[2]


AXES = {
    "labels": "labelled samples N",
    "unlabelled": "inputs without labels, beside 100 labels",
    "strength": "fine-tuning steps of the expert",
    "target": "source → target",
}


def page(question: str, cells: Sequence[Cell]) -> str:
    """The Markdown of one question."""
    tasks = ", ".join(f"{task} {sum(c.task == task for c in cells)}" for task in dict.fromkeys(c.task for c in cells))
    parts = [
        f"# {question}",
        f"Made by `python -m benchmarks.beyond.ask {question}` and `python -m benchmarks.beyond.table {question}` on "
        f"{date.today()}.\nMachine: {machine()}.",
        f"Cells (experts × draws) per task: {tasks}. Accuracy in %, mean ± sd; share of the gap to the fine-tuned target "
        "in brackets or in its own column.",
    ]
    axis = QUESTIONS[question].axis
    if not axis and {cell.task for cell in cells} >= {*DEVELOPMENT, *CONFIRMATION}:
        parts += ["## In short: share of the gap", in_short(cells)]
    for title, chosen in (("Development tasks", DEVELOPMENT), ("Confirmation tasks", CONFIRMATION)):
        part = [cell for cell in cells if cell.task in chosen]
        if not part:
            continue
        if axis:
            held = comparable(axis, part)["All tasks"]
            parts += [f"## {title}: {', '.join(dict.fromkeys(c.task for c in held))}", axis_table(axis, held)]
            continue
        for pair in dict.fromkeys(cell.pair for cell in part):
            group = [cell for cell in part if cell.pair == pair]
            parts += [f"## {title}, {pair}", accuracy_table(group), advice(group)]
    if axis:
        for title, held in comparable(axis, cells).items():
            parts += [f"## {title}", axis_table(axis, held), gain_table(axis, held)]
        parts += [f"![{question}]({question}.png)"]
    else:
        most = regime_of(cells[0], "bico+head")
        parts += ["## By task", by_task(cells, most)]
    if lines := prediction(cells):
        parts += ["## First-order predicted gain", "Rank correlation with the true gain in points:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def middle(question: Question, cells: Sequence[Cell], regimes: Sequence[Cell]) -> list[Cell]:
    """What the question of regimes has measured of this one: the middle of its axis, for the same tasks, experts and draws."""
    wanted = {(method, data == "labels" or not get_chain(method).uses_unlabelled) for method, data in question.recipes}
    same = {(cell.task, cell.place.expert, cell.place.seed) for cell in cells}
    return [
        Cell(
            cell.place,
            {r: a for r, a in cell.accuracy.items() if r[0] in REFERENCES or (r[1] and (r[0], r[2] == 0) in wanted)},
            {},
        )
        for cell in regimes
        if (cell.task, cell.place.expert, cell.place.seed) in same
    ]


def main() -> None:
    for question in sys.argv[1:]:
        cells = read_cells(HERE / f"{question}.csv")
        if QUESTIONS[question].axis:
            cells += middle(QUESTIONS[question], cells, read_cells(HERE / "regimes.csv"))
        (HERE / f"{question}.md").write_text(page(question, cells))
        if axis := QUESTIONS[question].axis:
            plot(axis, cells).savefig(HERE / f"{question}.png", dpi=110)


if __name__ == "__main__":
    main()
