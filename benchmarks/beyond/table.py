"""Makes the page and the plot of one question of the study from its cells.

    python -m benchmarks.beyond.table QUESTION

writes QUESTION.md, and QUESTION.png where the question has an axis, beside benchmarks/beyond/QUESTION.csv. Accuracies are
means ± sd over a pair's experts and calibration draws. Shares of the gap are (accuracy − zero-shot) / (fine-tuned −
zero-shot), in %, of averages over the tasks. A control is the same last steps without transport; differences to it are
paired cell by cell.
"""

import statistics
import sys
from collections.abc import Sequence
from datetime import date

from scipy.stats import spearmanr

from benchmarks.beyond.averages import (
    Cells,
    along,
    average,
    axis_values,
    comparable,
    over,
    over_by_task,
    regime_of,
    share,
    spread,
    value_on,
)
from benchmarks.beyond.ideas import BICO, DEPTH_IDEAS, IDEAS
from benchmarks.beyond.measured import MeasuredCell, Regime, read_cells
from benchmarks.beyond.plot import plot
from benchmarks.beyond.questions import CONFIRMATION, DEVELOPMENT, HERE, QUESTIONS, Question
from benchmarks.beyond.setting import Data
from benchmarks.measure import table
from bico.calibration.budget import Budget
from bico.methods.spec import Spec
from bico.methods.variant import carries_expert, get_variant
from bico.reporting.advice import recommend
from bico.reporting.names import label_of
from bico.reporting.provenance import machine
from bico.reporting.references import EXPERT, is_reference
from bico.reporting.rows import Row


def accuracy_table(cells: Cells) -> str:
    """One pair: a line per recipe and regime, a column per task, the share of the gap, and the control's difference."""
    tasks = [task for task in (*DEVELOPMENT, *CONFIRMATION) if any(cell.task == task for cell in cells)]
    regimes = sorted(regimes_of(cells), key=lambda regime: (bool(regime.budget), _unlabelled_last(regime.budget)))
    lines = []
    for regime in regimes:
        held = [cell for cell in cells if regime in cell.accuracy]
        per_task = [spread([cell.accuracy[regime] for cell in held if cell.task == task]) for task in tasks]
        closed = "" if regime.method == EXPERT.spec else f"{share(held, regime):.0f} %"
        paired = over(held, regime, regime.control)
        gained = spread(paired, "+") if paired else ""
        lines.append([label_of(regime.method), *counts(regime.budget), *per_task, closed, gained])
    return table(["recipe", "N", "unlabelled", *tasks, "share of the gap", "over its control"], lines)


def in_short(cells: Cells) -> str:
    """A line per recipe and regime over all tasks of a kind: shares of the gap, beside plain BiCo's, and what transport adds.

    Differences to the control are averaged per task first; in favour: tasks where that is above zero.
    """
    development, confirmation = ([cell for cell in cells if cell.task in kind] for kind in (DEVELOPMENT, CONFIRMATION))
    lines = []
    for regime in sorted(regimes_of(cells), key=lambda regime: _unlabelled_last(regime.budget)):
        if is_reference(regime.method) or not all(regime in cell.accuracy for cell in cells):
            continue
        dev, conf = share(development, regime), share(confirmation, regime)
        times = conf / share(confirmation, Regime(BICO, regime.budget))
        gained, favour = "", ""
        if regime.control and all(regime.control in cell.accuracy for cell in confirmation):
            gains = over_by_task(confirmation, regime, regime.control)
            gained, favour = spread(gains, "+"), in_favour(gains)
        shares = f"{dev:.0f} %", f"{conf:.0f} %", f"{times:.2f}"
        lines.append([label_of(regime.method), *counts(regime.budget), *shares, gained, favour])
    columns = ["of plain BiCo's, confirmation", "over its control, confirmation", "in favour"]
    return table(["recipe", "N", "unlabelled", "development", "confirmation", *columns], lines)


def advice(cells: Cells) -> str:
    """The product's own sentences; experts and draws are its seeds."""
    rows = [
        Row(
            cell.task,
            method,
            budget,
            10 * cell.setting.expert + cell.setting.seed if budget else None,
            accuracy=accuracy,
        )
        for cell in cells
        for (method, budget), accuracy in cell.accuracy.items()
    ]
    budgets = sorted({row.budget for row in rows if row.budget.asked})
    return "\n".join(f"- {recommend(rows, budget, carries)}" for budget in budgets)


def carries(method: Spec) -> bool:
    """Whether a recipe carries the expert over, as all ideas do."""
    return method.name in IDEAS or method.name in DEPTH_IDEAS or carries_expert(method)


def prediction(cells: Cells) -> list[str]:
    """Does the first-order gain tell where a transfer will gain? Rank correlation over cells."""
    lines = []
    for regime in dict.fromkeys(regime for cell in cells for regime in cell.predicted):
        pairs = [(c.predicted[regime], c.accuracy[regime] - c.zero) for c in cells if regime in c.predicted]
        if len(pairs) > 3:
            found = spearmanr(*zip(*pairs, strict=True))
            asked, unlabelled = regime.budget.asked, regime.budget.unlabelled
            name = f"{label_of(regime.method)}, N={asked}" + f", {unlabelled} unlabelled" * bool(unlabelled)
            lines.append(f"- {name}: ρ = {found.statistic:.2f} over {len(pairs)} cells (p = {found.pvalue:.2g})")
    return lines


def by_task(cells: Cells, regime: Regime) -> str:
    """Distance of a task from pre-training, told by what the target knows of it: a line per task, nearest last."""
    groups = {task: [cell for cell in cells if cell.task == task] for task in tasks_of(cells)}
    lines = []
    for task, held in sorted(groups.items(), key=lambda item: statistics.fmean(cell.zero for cell in item[1])):
        zero, fine = (spread([value]) for value in (held[0].zero, held[0].fine))
        gains = spread([cell.accuracy[regime] - cell.zero for cell in held], "+")
        more = spread(over(held, regime, regime.control), "+")
        lines.append([task, zero, fine, gains, f"{share(held, regime):.0f} %", more])
    about = f"{label_of(regime.method)}, N={regime.budget.asked}, {regime.budget.unlabelled} unlabelled:"
    columns = ["task", "zero-shot", "fine-tuned", "gain", "share of the gap", "over its control"]
    return f"{about}\n\n{table(columns, lines)}"


def axis_table(axis: str, cells: Cells) -> str:
    """A line per recipe, a column per value of the axis: the average over tasks, with the share of the gap closed."""
    values, lines = axis_values(axis, cells), []
    for method, groups in along(axis, cells).items():
        written = []
        for value in values:
            held = groups.get(value, [])
            closed = held and not is_reference(method)
            part = f" ({share(held, regime_of(held[0], method)):.0f} %)" if closed else ""
            written.append(spread(average(held, method)) + part if held else "–")
        lines.append([label_of(method), *written])
    return table(["recipe", *values], lines)


def gain_table(axis: str, cells: Cells) -> str:
    """What transport adds to each recipe along the axis: points over its control, averaged per task; mean ± sd over tasks."""
    values, lines = axis_values(axis, cells), []
    for method in dict.fromkeys(method for cell in cells for method in cell.methods):
        written = []
        for value in values:
            held = [cell for cell in cells if value_on(axis, cell) == value]
            held = [cell for cell in held if {method, method.control} <= {*cell.methods}]
            if not held:
                continue
            gains = over_by_task(held, regime_of(held[0], method), regime_of(held[0], method.control))
            written.append(f"{spread(gains, '+')} ({in_favour(gains)})")
        if len(written) == len(values):
            lines.append([label_of(method), *written])
    return table(["points over the control", *values], lines)


def page(question: str, cells: Cells) -> str:
    """The Markdown of one question."""
    tasks = ", ".join(f"{task} {sum(cell.task == task for cell in cells)}" for task in tasks_of(cells))
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
            parts += [f"## {title}: {', '.join(tasks_of(held))}", axis_table(axis, held)]
            continue
        for pair in dict.fromkeys(cell.pair for cell in part):
            group = [cell for cell in part if cell.pair == pair]
            parts += [f"## {title}, {pair}", accuracy_table(group), advice(group)]
    if axis:
        for title, held in comparable(axis, cells).items():
            parts += [f"## {title}", axis_table(axis, held), gain_table(axis, held)]
        parts += [f"![{question}]({question}.png)"]
    else:
        parts += ["## By task", by_task(cells, regime_of(cells[0], Spec.parse("bico+head")))]
    if lines := prediction(cells):
        parts += ["## First-order predicted gain", "Rank correlation with the true gain in points:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def middle(question: Question, cells: Cells, regimes: Cells) -> list[MeasuredCell]:
    """What the question of regimes has measured of this one: the middle of its axis, for the same tasks, experts and draws."""
    wanted = {
        (arm.method, arm.data is Data.LABELLED or not get_variant(arm.method).uses_unlabelled) for arm in question.arms
    }

    def asked_for(regime: Regime) -> bool:
        method, budget = regime
        return is_reference(method) or (budget.asked > 0 and (method, budget.unlabelled == 0) in wanted)

    same = {(cell.task, cell.setting.expert, cell.setting.seed) for cell in cells}
    return [
        MeasuredCell(cell.setting, {r: value for r, value in cell.accuracy.items() if asked_for(r)}, {})
        for cell in regimes
        if (cell.task, cell.setting.expert, cell.setting.seed) in same
    ]


def regimes_of(cells: Cells) -> list[Regime]:
    return list(dict.fromkeys(regime for cell in cells for regime in cell.accuracy))


def tasks_of(cells: Cells) -> list[str]:
    return list(dict.fromkeys(cell.task for cell in cells))


def counts(budget: Budget) -> list[str]:
    return [str(count) if count else "–" for count in (budget.asked, budget.unlabelled)]


def in_favour(gains: Sequence[float]) -> str:
    return f"{sum(gain > 0 for gain in gains)}/{len(gains)}"


def _unlabelled_last(budget: Budget) -> tuple[int, bool]:
    """An order of regimes: labels alone, unlabelled inputs with labels, and without."""
    return budget.unlabelled, budget.asked == 0


def main() -> None:
    for question in sys.argv[1:]:
        cells = read_cells(HERE / f"{question}.csv")
        if axis := QUESTIONS[question].axis:
            cells += middle(QUESTIONS[question], cells, read_cells(HERE / "regimes.csv"))
            plot(axis, cells).savefig(HERE / f"{question}.png", dpi=110)
        (HERE / f"{question}.md").write_text(page(question, cells))


if __name__ == "__main__":
    main()
