"""The figures of the paper, put together from the plots: a panel per pair of models where a panel holds one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bico.analysis.plots import (
    plot_alignment,
    plot_cka,
    plot_determined,
    plot_drift,
    plot_output_similarity,
    plot_spectrum,
)
from bico.analysis.records import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = Callable[[Sequence[Measurement], "Axes"], "Axes"]


def _drift(quantity: str, records: Sequence[Measurement], ax: "Axes") -> "Axes":
    return plot_drift(records, quantity, ax)


PLOTS: dict[str, tuple[Plot, ...]] = {
    "figure1": (plot_alignment,),
    "figure2": (plot_output_similarity,),
    "figureA": tuple(partial(_drift, quantity) for quantity in ("direction", "magnitude")),
    "figureB": (plot_cka,),
    "spectra": (plot_determined, plot_spectrum),
}
"""The plots of each figure, side by side."""

TOGETHER = {"figureB"}
"""Figures that show all pairs in one panel."""


def draw_figure(name: str, records: Sequence[Measurement]) -> "Figure":
    """Draws a figure: its plots side by side, one row per pair of models.

    Arguments:
        name: One of `PLOTS`.
    """
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure it ever made

    plots, pairs = PLOTS[name], list(dict.fromkeys(record.pair for record in records))
    rows = [list(records)] if name in TOGETHER else [[r for r in records if r.pair == pair] for pair in pairs]
    figure = Figure(figsize=(7.5 * len(plots), 4.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(plots), squeeze=False)
    for row, (chosen, places) in enumerate(zip(rows, axes, strict=True)):
        for plot, ax in zip(plots, places, strict=True):
            plot(chosen, ax)
            if name not in TOGETHER and pairs[row]:
                ax.set_title(f"{ax.get_title()}\n{pairs[row]}", fontsize=10)
    return figure
