"""Accuracy along the axis of a question, drawn."""

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.beyond.averages import Cells, along, average, axis_values, comparable
from benchmarks.beyond.questions import PAIRS
from bico.methods import METHODS
from bico.methods.spec import Spec
from bico.reporting.names import colour_of, label_of
from bico.reporting.references import EXPERT, FINE_TUNED, ZERO_SHOT, is_reference

AXES = {
    "labels": "labelled samples N",
    "unlabelled": "inputs without labels, beside 100 labels",
    "strength": "fine-tuning steps of the expert",
    PAIRS: "source → target",
}
MARKERS = {ZERO_SHOT.spec: "v", FINE_TUNED.spec: "^"}


def plot_axis(axis: str, cells: Cells, ax: Axes) -> Axes:
    """Average accuracy along the axis: a transfer as a full line, its control or baseline dashed in the same colour."""
    found, values = along(axis, cells), axis_values(axis, cells)
    last = dict.fromkeys(method.steps for method in found)
    colours = {steps: f"C{place}" for place, steps in enumerate(last)} | {(): colour_of(Spec.parse("bico"))}
    shown = [method for method in found if method != EXPERT.spec]
    for place, method in enumerate(shown):
        # Pairs have no order: nothing connects them, and marks stand side by side.
        aside = 0.05 * (place - len(shown) / 2) if axis == PAIRS else 0.0
        points = sorted((values.index(v) + aside, average(held, method)) for v, held in found[method].items())
        named = method.name in METHODS and not method.steps
        bare = not method.carries or method == Spec.parse("theseus") or is_reference(method)
        ax.errorbar(
            [x for x, _ in points],
            [statistics.fmean(found) for _, found in points],
            [statistics.stdev(found) if len(found) > 1 else 0 for _, found in points],
            label=label_of(method),
            color="grey" if is_reference(method) else colour_of(method) if named else colours[method.steps],
            ls="" if axis == PAIRS else ":" if method == ZERO_SHOT.spec else "--" if bare else "-",
            marker=MARKERS.get(method, "o"),
            mfc="white" if bare else None,
            ms=5,
            capsize=3,
        )
    ax.set_xticks(range(len(values)), [value.replace(" → ", "\n→ ") for value in values])
    ax.set(xlabel=AXES[axis], ylabel="test accuracy, average over tasks (%)")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax


def plot(axis: str, cells: Cells) -> Figure:
    """A panel for each set of tasks that can be compared."""
    parts = comparable(axis, cells)
    figure = Figure(figsize=(8, 4.5 * len(parts)), layout="constrained")
    for (title, part), ax in zip(parts.items(), figure.subplots(len(parts), squeeze=False)[:, 0], strict=True):
        plot_axis(axis, part, ax).set_title(title, fontsize=9)
    return figure
