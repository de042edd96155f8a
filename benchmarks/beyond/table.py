"""Makes the tables of the study from its cells.

    python -m benchmarks.beyond.table benchmarks/beyond/cells.csv > benchmarks/beyond/cells.md

Accuracies are means ± sd over a pair's experts and calibration draws. Shares of the gap are (accuracy − zero-shot) /
(fine-tuned − zero-shot), in %, of each cell and then averaged. A control is the same last steps without transport;
differences to it are paired cell by cell.
"""

import csv
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from bico.chain import control
from bico.recommend import recommend
from bico.report import Row, method_label

DEVELOPMENT = ("digits", "mnist", "segments")
"""Tasks that choices were made on."""
CONFIRMATION = ("lamps", "fashion_mnist", "gtsrb", "cifar10")
"""Tasks that were named before looking at them."""

Regime = tuple[str, int, int]
"""(method, labels, unlabelled inputs)."""


@dataclass(frozen=True)
class Cell:
    """All that was measured for one expert and one draw of calibration inputs."""

    target: str
    task: str
    expert: int
    seed: int
    accuracy: dict[Regime, float]
    predicted: dict[Regime, float]

    def gap(self, regime: Regime) -> float:
        """Share of the way from zero-shot to fine-tuned, percent."""
        zero, fine = self.accuracy["zero-shot", 0, 0], self.accuracy["fine-tuned", 0, 0]
        return 100 * (self.accuracy[regime] - zero) / (fine - zero)


def read_cells(path: Path) -> list[Cell]:
    grouped: dict[tuple, tuple[dict, dict]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            place = (row["target"], row["task"], int(row["expert"]), int(row["seed"]))
            accuracy, predicted = grouped.setdefault(place, ({}, {}))
            regime = (row["method"], int(row["samples"]), int(row["unlabelled"]))
            accuracy[regime] = float(row["accuracy"])
            if row["predicted"]:
                predicted[regime] = float(row["predicted"])
    return [Cell(*place, *measured) for place, measured in grouped.items()]


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
        share = "" if method in ("expert",) else f"{statistics.fmean(cell.gap(regime) for cell in held):.0f} %"
        bare = (control(method), samples, unlabelled)
        paired = [cell.accuracy[regime] - cell.accuracy[bare] for cell in held if bare in cell.accuracy]
        counts = [str(n) if n else "–" for n in (samples, unlabelled)]
        over = spread(paired, "+") if paired else ""
        lines.append(f"| {' | '.join([method_label(method), *counts, *per_task, share, over])} |")
    return "\n".join(lines)


def advice(cells: Sequence[Cell]) -> str:
    """The product's own sentences; experts and draws are its seeds."""
    rows = [
        Row(
            c.task,
            method,
            samples,
            10 * c.expert + c.seed if samples or unlabelled else None,
            value,
            unlabelled,
        )
        for c in cells
        for (method, samples, unlabelled), value in c.accuracy.items()
    ]
    regimes = sorted({(row.samples, row.unlabelled) for row in rows if row.samples})
    return "\n".join(f"- {recommend(rows, *regime)}" for regime in regimes)


def prediction(cells: Iterable[Cell]) -> list[str]:
    """Does the first-order gain tell where a transfer will gain? Rank correlation over cells, and within tasks."""
    cells = list(cells)
    lines = []
    for regime in dict.fromkeys(regime for cell in cells for regime in cell.predicted):
        pairs = [(c.predicted[regime], c.accuracy[regime] - c.accuracy["zero-shot", 0, 0]) for c in cells]
        if len(pairs) > 3:
            found = spearmanr(*zip(*pairs, strict=True))
            name = f"{method_label(regime[0])}, N={regime[1]}" + f", {regime[2]} unlabelled" * bool(regime[2])
            lines.append(f"- {name}: ρ = {found.statistic:.2f} over {len(pairs)} cells (p = {found.pvalue:.2g})")
    return lines


def main() -> None:
    cells = read_cells(Path(sys.argv[1]))
    for title, tasks in (("Development tasks", DEVELOPMENT), ("Confirmation tasks", CONFIRMATION)):
        for target in dict.fromkeys(cell.target for cell in cells):
            part = [cell for cell in cells if cell.target == target and cell.task in tasks]
            if not part:
                continue
            counted = ", ".join(f"{task} {sum(c.task == task for c in part)}" for task in tasks)
            print(f"## {title}, mini-a → {target}\n\nCells: {counted}.\n")
            print(f"{accuracy_table(part)}\n\n{advice(part)}\n")
    if lines := prediction(cells):
        print("## First-order predicted gain\n\nRank correlation with the true gain in points:\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
