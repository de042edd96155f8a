"""Results as tables and plots: means and spreads over calibration seeds."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCES = ("zero-shot", "target-probe", "source-probe", "full-data", "fine-tuned", "expert")
"""Rows that are no transfer: the target as it is (by its own head, or by a probe on the calibration samples), the source
by such a probe, the target by a probe on all training samples, the target fine-tuned, and the source's expert itself."""

LABELS = {
    "bico": "BiCo",
    "theseus": "THESEUS",
    "gradfix": "GradFix",
    "transfusion": "TransFusion",
    "few-shot": "few-shot (one step)",
    "expert": "expert (on its own model)",
    "target-probe": "target probe",
    "source-probe": "source probe",
    "full-data": "target probe, all data",
    "none": "no transport",
    "head:targets=labels": "head of labels",
    "head:targets=labels:fit=logistic": "logistic head of labels",
    "head:fit=logistic": "logistic head",
    "tune:steps=30": "30 steps",
}
COLOURS = {
    "bico": "#c2410c",
    "theseus": "#1d4ed8",
    "gradfix": "#7e22ce",
    "transfusion": "#0e7490",
    "few-shot": "#be185d",
    "input-only": "#0891b2",
    "output-only": "#65a30d",
    "gradient-only": "#d97706",
    "naive": "#6b7280",
    "zero-pad": "#15803d",
    "crop": "#a16207",
}
MARKERS = "os^Dv"
"""Variants of one method share its colour and differ in their marks."""


def method_label(method: str) -> str:
    """Returns a method's name for people, with the settings that were given.

    Example:
        >>> method_label("gradfix:mask=force:vote=mean")
        'GradFix, mask force, vote mean'
        >>> method_label("bico+head:targets=labels")
        'BiCo + head of labels'
    """
    return " + ".join(_part_label(part) for part in re.split(r"\+(?=[A-Za-z])", method))


def _part_label(part: str) -> str:
    if part in LABELS:
        return LABELS[part]
    name, *settings = part.split(":")
    return ", ".join([LABELS.get(name, name), *(setting.replace("=", " ") for setting in settings)])


def short_name(ref: str) -> str:
    """A model's name in a heading; of a folder, its own name and not the path of one machine.

    Example:
        >>> short_name("zoo:mini-a"), short_name("some/folder/my-vit")
        ('mini-a', 'my-vit')
    """
    scheme, _, name = ref.partition(":")
    return name if scheme in ("zoo", "open_clip") else PurePath(ref).name


@dataclass(frozen=True)
class Row:
    """One evaluated model."""

    task: str
    method: str
    samples: int
    """Calibration samples with labels; 0 for methods that need none."""
    seed: int | None
    """Calibration seed; None where nothing was drawn."""
    accuracy: float
    """Percent of the test split."""
    unlabelled: int = 0
    """Calibration inputs without labels beside them."""

    @classmethod
    def parse(cls, record: Mapping[str, str]) -> "Row":
        """Reads a line of a CSV table as transfers and recipes write it; older ones have no column `unlabelled`.

        Raises:
            KeyError: If a column is missing; TypeError or ValueError if a value is no number.
        """
        return cls(
            record["task"],
            record["method"],
            int(record["samples"]),
            int(record["seed"]) if record["seed"] else None,
            float(record["accuracy"]),
            int(record.get("unlabelled") or 0),
        )

    @property
    def label(self) -> str:
        """Such as "digits/bico/N=100/seed=0"."""
        return cell_label(self.task, self.method, self.samples, self.seed, self.unlabelled)


def cell_label(task: str, method: str, samples: int, seed: int | None, unlabelled: int = 0) -> str:
    """Names one cell of a sweep."""
    more = f"/U={unlabelled}" if unlabelled else ""
    return f"{task}/{method}" + ("" if seed is None else f"/N={samples}{more}/seed={seed}")


@dataclass(frozen=True)
class Summary:
    """Accuracies of one method at one sample count, in percent."""

    method: str
    samples: int
    per_task: dict[str, tuple[float, float]]
    """Mean and standard deviation over seeds."""
    average: tuple[float, float]
    """Mean over tasks and seeds, and the standard deviation over seeds of the average over tasks."""
    seeds: int
    unlabelled: int = 0


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Returns one summary per method, sample count and number of unlabelled inputs, in the order of the rows.

    Standard deviations are those of a sample (n - 1), and 0 for a single value.
    """
    grouped: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.method, row.samples, row.unlabelled), []).append(row)
    summaries = []
    for (method, samples, unlabelled), group in grouped.items():
        tasks = list(dict.fromkeys(row.task for row in group))
        seeds = list(dict.fromkeys(row.seed for row in group))
        per_task = {task: _mean_sd([row.accuracy for row in group if row.task == task]) for task in tasks}
        averages = [statistics.fmean(row.accuracy for row in group if row.seed == seed) for seed in seeds]
        summaries.append(Summary(method, samples, per_task, _mean_sd(averages), len(seeds), unlabelled))
    return summaries


def markdown_table(rows: Sequence[Row], beside: Mapping[str, Mapping[tuple[str, int], str]] | None = None) -> str:
    """Returns a Markdown table: a line per method and sample count, a column per task, and the average.

    Arguments:
        beside: Further columns: by heading, what to write at (method, samples).
    """
    tasks, beside = list(dict.fromkeys(row.task for row in rows)), beside or {}
    summaries = summarise(rows)
    base = base_of(rows)
    starts = {s.samples: s.average[0] for s in summaries if s.method == base}
    counts = ["N", *["unlabelled"] * any(row.unlabelled for row in rows)]
    lines = [
        "| " + " | ".join(["method", *counts, *tasks, "average", f"over {method_label(base)}", *beside]) + " |",
        "| --- |" + " ---: |" * (len(counts) + len(tasks) + 2 + len(beside)),
    ]
    for s in summaries:
        start = starts.get(s.samples if base == "target-probe" else 0)
        gain = "" if start is None or s.method == base else f"{s.average[0] - start:+.1f}"
        cells = [cell(s.per_task[task], s.seeds) if task in s.per_task else "–" for task in tasks]
        numbers = [str(n) if n else "–" for n in (s.samples, s.unlabelled)][: len(counts)]
        more = [column.get((s.method, s.samples), "") for column in beside.values()]
        cells = [method_label(s.method), *numbers, *cells, cell(s.average, s.seeds), gain, *more]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def base_of(rows: Iterable[Row]) -> str:
    """Returns which row of a table is the target as it is."""
    return "target-probe" if any(row.method == "target-probe" for row in rows) else "zero-shot"


def start_of(cell: Row, rows: Iterable[Row]) -> float | None:
    """Accuracy of the target as it is on a cell's task; by a probe, on the cell's own samples. None if not measured."""
    own = {(row.task, row.samples, row.seed): row.accuracy for row in rows if row.method == "target-probe"}
    plain = {row.task: row.accuracy for row in rows if row.method == "zero-shot"}
    return own.get((cell.task, cell.samples, cell.seed), plain.get(cell.task))


def headlines(rows: Sequence[Row], method: str = "bico") -> list[str]:
    """Returns what a table says of a method at its largest N, in points, averaged over tasks; nothing if it has none."""
    averages = {(s.method, s.samples): s.average for s in summarise(rows) if not s.unlabelled}
    largest = max((samples for name, samples in averages if name == method), default=None)
    base = base_of(rows)
    zero = averages.get((base, 0 if base == "zero-shot" else largest))
    if largest is None or zero is None:
        return []
    name, (mean, sd) = LABELS.get(method, method), averages[method, largest]
    lines = [f"- N={largest}: {name} − {method_label(base)} = {mean - zero[0]:+.1f} ± {sd:.1f} points"]
    for other, samples in (("theseus", largest), ("source-probe", largest), ("naive", 0), ("zero-pad", 0), ("crop", 0)):
        if (other, samples) in averages:
            gap = mean - averages[other, samples][0]
            lines.append(f"- N={largest}: {name} − {LABELS.get(other, other)} = {gap:+.1f} points")
    if ("fine-tuned", 0) in averages and averages["fine-tuned", 0][0] != zero[0]:
        share = 100 * (mean - zero[0]) / (averages["fine-tuned", 0][0] - zero[0])
        lines.append(f"- N={largest}: {share:.0f} % of the gap to the fine-tuned target is closed")
    return lines


def plot_accuracy(rows: Sequence[Row], ax: "Axes | None" = None) -> "Axes":
    """Plots average accuracy against calibration samples: every seed as a dot, means as lines, references dashed."""
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure it ever made

    ax = ax or Figure(figsize=(7, 4.5), layout="constrained").subplots()
    summaries = summarise(rows)
    variants: dict[str, int] = {}
    for method, unlabelled in dict.fromkeys((s.method, s.unlabelled) for s in summaries):
        own = [row for row in rows if (row.method, row.unlabelled) == (method, unlabelled)]
        mine = sorted(
            (s for s in summaries if (s.method, s.unlabelled) == (method, unlabelled)), key=lambda s: s.samples
        )
        base = re.split("[:+]", method)[0]
        label, colour = (
            method_label(method) + f", {unlabelled} unlabelled" * bool(unlabelled),
            COLOURS.get(base, "black"),
        )
        marker = MARKERS[variants.setdefault(base, 0) % len(MARKERS)]
        variants[base] += 1
        if all(row.seed is None for row in own):  # nothing was drawn: the same at every count
            style = {"zero-shot": ":", "naive": "-."}.get(method, "--")
            ax.axhline(mine[0].average[0], ls=style, color=colour, lw=1.2, label=f"{label} ({mine[0].average[0]:.1f})")
            continue
        counts = [s.samples for s in mine]
        ax.errorbar(
            counts,
            [s.average[0] for s in mine],
            [s.average[1] for s in mine],
            color=colour,
            marker=marker,
            ls="-" if variants[base] == 1 else "--",
            ms=4,
            capsize=3,
            label=label,
        )
        for samples in counts:
            group = [row for row in own if row.samples == samples]
            seeds = dict.fromkeys(row.seed for row in group)
            dots = [statistics.fmean(r.accuracy for r in group if r.seed == seed) for seed in seeds]
            ax.scatter([samples] * len(dots), dots, color=colour, s=10, alpha=0.4, zorder=3)
    sampled = sorted({row.samples for row in rows if row.seed is not None})
    if sampled:
        if sampled[0]:
            ax.set_xscale("log")
        elif len(sampled) > 1:  # no labels at all has a place on the axis, left of the others
            ax.set_xscale("symlog", linthresh=sampled[1], linscale=0.5)
        ax.set_xticks(sampled, [str(n) for n in sampled])
        ax.minorticks_off()
    tasks = list(dict.fromkeys(row.task for row in rows))
    ax.set(xlabel="calibration samples N", ylabel="test accuracy (%)", title=f"Average over {', '.join(tasks)}")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def cell(value: tuple[float, float], seeds: int) -> str:
    """Writes a mean with its standard deviation, which a single seed does not have."""
    return f"{value[0]:.1f} ± {value[1]:.1f}" if seeds > 1 else f"{value[0]:.1f}"
