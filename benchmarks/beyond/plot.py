"""Accuracy along the axis of a question, drawn."""

import statistics
from collections.abc import Sequence

from bico.reporting.report import COLOURS, method_label
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.beyond.cells import REFERENCES
from benchmarks.beyond.groups import Cell, along, average, axis_values, comparable

AXES = {
    "labels": "labelled samples N",
    "unlabelled": "inputs without labels, beside 100 labels",
    "strength": "fine-tuning steps of the expert",
    "target": "source → target",
}


def plot_axis(axis: str, cells: Sequence[Cell], ax: Axes) -> Axes:
    """Average accuracy along the axis: a transfer as a full line, its control or baseline dashed in the same colour."""
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
