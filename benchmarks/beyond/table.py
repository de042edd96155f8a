"""Makes the page and the plot of one question of the study from its cells.

    python -m benchmarks.beyond.table QUESTION

writes QUESTION.md, and QUESTION.png where the question has an axis, beside benchmarks/beyond/QUESTION.csv. Accuracies are
means ± sd over a pair's experts and calibration draws. Shares of the gap are (accuracy − zero-shot) / (fine-tuned −
zero-shot), in %, of averages over the tasks. A control is the same last steps without transport; differences to it are
paired cell by cell.
"""

import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import date

from bico.reporting.report import Row, method_label
from scipy.stats import spearmanr

from benchmarks.beyond.ask import HERE, QUESTIONS, Question
from benchmarks.beyond.cells import REFERENCES
from benchmarks.beyond.groups import (
    CONFIRMATION,
    DEVELOPMENT,
    Cell,
    Regime,
    along,
    average,
    axis_values,
    comparable,
    over_control,
    read_cells,
    regime_of,
    share,
    share_of,
    spread,
    value_on,
)
from benchmarks.beyond.plot import plot
from bico.methods.variant import control, get_variant
from bico.reporting.advice import recommend
from bico.reporting.provenance import machine


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
    wanted = {
        (method, data == "labels" or not get_variant(method).uses_unlabelled) for method, data in question.recipes
    }
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
