"""Which strengths line searches have found, for people: a line a method, and a small plot of the curves."""

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bico.last_steps.curve import StrengthCurve
from bico.reporting.names import colour_of, label_of
from bico.reporting.rows import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def strength_lines(curves: Mapping[Cell, StrengthCurve]) -> list[str]:
    """A line per method and budget: how often each strength was chosen, and what it gains over strength one."""
    groups: dict[str, list[StrengthCurve]] = {}
    for cell, curve in curves.items():
        groups.setdefault(f"{label_of(cell.method)}, {cell.budget}", []).append(curve)
    return [f"- {name}: {told(found)}" for name, found in groups.items()]


def told(curves: list[StrengthCurve]) -> str:
    """What one method's searches found, in words.

    Example:
        >>> told([StrengthCurve((0.0, 1.0, 2.0), (1.5, 1.0, 0.75), 2.0), StrengthCurve((0.0, 1.0), (1.5, 1.0), 1.0)])
        'strength 1 (1 of 2), 2 (1 of 2), by the loss on the labels, 0.125 nats below strength 1 on average'
    """
    counts = sorted(Counter(curve.chosen for curve in curves).items())
    chosen = ", ".join(f"{at:g}" + (f" ({n} of {len(curves)})" if len(curves) > 1 else "") for at, n in counts)
    gain = statistics.fmean(curve.gain for curve in curves)
    average = " on average" if len(curves) > 1 else ""
    return f"strength {chosen}, by the loss on the labels, {gain:.3g} nats below strength 1{average}"


def plot_strengths(curves: Mapping[Cell, StrengthCurve], ax: "Axes | None" = None) -> "Axes":
    """Plots the loss at every strength, less that of the untouched target: a thin line a search, a dot where it chose."""
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure it ever made

    ax = ax or Figure(figsize=(4.5, 3), layout="constrained").subplots()
    named = set()
    for cell, curve in curves.items():
        label = label_of(cell.method)
        changes = [loss - curve.losses[0] for loss in curve.losses]
        colour = colour_of(cell.method)
        ax.plot(curve.strengths, changes, color=colour, lw=0.8, label=None if label in named else label)
        ax.plot([curve.chosen], [changes[curve.strengths.index(curve.chosen)]], "o", color=colour, ms=4)
        named.add(label)
    ax.set_xscale("symlog", linthresh=0.25, linscale=0.3)
    ticks = [0, 0.25, 0.5, 1, 2, 4, 8]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.axhline(0, color="black", lw=0.6)
    ax.set(xlabel="strength", ylabel="loss over the untouched target's")
    ax.legend(fontsize=7, frameon=False)
    return ax
