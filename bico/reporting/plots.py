"""Results as a plot."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bico.reporting.names import colour_of, label_of
from bico.reporting.references import REFERENCES
from bico.reporting.rows import Row, Summary, by_seed, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "os^Dv"
"""Variants of one method share its colour and differ in their marks."""


def plot_accuracy(rows: Sequence[Row], ax: "Axes | None" = None) -> "Axes":
    """Plots average accuracy against calibration samples: every seed as a dot, means as lines; what needs no samples is a
    dashed line across.
    """
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure it ever made

    ax = ax or Figure(figsize=(7, 4.5), layout="constrained").subplots()
    summaries = summarise(rows)
    drawn: dict[str, int] = {}
    for method, unlabelled in dict.fromkeys((s.method, s.budget.unlabelled) for s in summaries):
        mine = [s for s in summaries if (s.method, s.budget.unlabelled) == (method, unlabelled)]
        label, colour = label_of(method) + f", {unlabelled} unlabelled" * bool(unlabelled), colour_of(method)
        variant = drawn[method.name] = drawn.get(method.name, -1) + 1
        own = [row for row in rows if (row.method, row.budget.unlabelled) == (method, unlabelled)]
        if all(row.seed is None for row in own):  # nothing was drawn: the same at every count
            style = REFERENCES[method.name].line if method.name in REFERENCES else "-."
            mean = mine[0].average[0]
            ax.axhline(mean, ls=style, color=colour, lw=1.2, label=f"{label} ({mean:.1f})")
        else:
            _curve(ax, mine, own, label, colour, MARKERS[variant % len(MARKERS)], "-" if variant == 0 else "--")
    if sampled := sorted({row.budget.asked for row in rows if row.seed is not None}):
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


def _curve(
    ax: "Axes", summaries: list[Summary], rows: Sequence[Row], label: str, colour: str, marker: str, line: str
) -> None:
    summaries = sorted(summaries, key=lambda s: s.budget)
    counts = [s.budget.asked for s in summaries]
    means = [s.average.mean for s in summaries]
    spreads = [math.nan if s.average.sd is None else s.average.sd for s in summaries]  # one seed has no bar
    ax.errorbar(counts, means, spreads, color=colour, marker=marker, ls=line, ms=4, capsize=3, label=label)
    for s in summaries:
        dots = by_seed(row for row in rows if row.budget == s.budget).values()
        ax.scatter([s.budget.asked] * len(dots), list(dots), color=colour, s=10, alpha=0.4, zorder=3)
