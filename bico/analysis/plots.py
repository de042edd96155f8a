"""Plots of the analyses: each takes measurements, averages them, and draws on one pair of axes.

Lines are means over tensors, tasks and seeds; bands go from the least to the largest of these.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bico.analysis.pairs import AFTER, BEFORE
from bico.analysis.records import Curve, Measurement, by_series, curve
from bico.calibration.signals import Signal
from bico.linalg.procrustes import RANK_TOLERANCE
from bico.methods.spec import Spec
from bico.reporting.names import colour_of, label_of
from bico.reporting.references import ZERO_SHOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITY_COLOURS = {"cka": "#0f766e", "cosine": "#7c3aed"}
SIGNAL_COLOURS = {
    Signal.INPUT: "#1d4ed8",
    Signal.OUTPUT: "#15803d",
    Signal.OUTPUT_GRAD: "#c2410c",
    Signal.INPUT_GRAD: "#a16207",
}
SIGNAL_NAMES = {
    Signal.INPUT: "inputs",
    Signal.OUTPUT: "outputs",
    Signal.OUTPUT_GRAD: "output gradients",
    Signal.INPUT_GRAD: "input gradients",
}
STYLES = ("-", "--", ":", "-.")
HELD_OUT = ", held out"
"""Ends the series of samples that the maps were not made from."""


def plot_alignment(records: Sequence[Measurement], ax: "Axes | None" = None) -> "Axes":
    """CKA and cosine of two models' layer inputs, before and after the map (BiCo, figure 1): a line each per layer.

    Of samples that the maps were not made from, the cosine after the map is drawn, dotted: the rest hardly differs.
    """
    ax = ax or new_axes()
    for quantity, name in (("cka", "CKA"), ("cosine", "cosine")):
        for series, group in by_series(records, quantity):
            style = {BEFORE: "--", AFTER: "-"}.get(series, ":")
            if style != ":" or (quantity, series) == ("cosine", AFTER + HELD_OUT):
                words = f"{name} {series}".replace(AFTER, "after $Q_{in}$").replace(BEFORE, "before $Q_{in}$")
                _line(ax, curve(group), words, QUANTITY_COLOURS[quantity], style, band=style != ":")
    return _per_layer(ax, "similarity of layer inputs (0–1)", "Layer inputs of source and target")


def plot_output_similarity(records: Sequence[Measurement], ax: "Axes | None" = None) -> "Axes":
    """Cosine of layer outputs to those of the fine-tuned target (BiCo, figure 2): a line per method."""
    ax = ax or new_axes()
    drawn: list[str] = []
    for series, group in by_series(records, "cosine"):
        method = Spec.parse(series)
        untouched = method == ZERO_SHOT.spec
        style = ZERO_SHOT.line if untouched else STYLES[drawn.count(method.name) % len(STYLES)]
        drawn.append(method.name)
        label = "target as it is" if untouched else label_of(method)
        _line(ax, curve(group), label, colour_of(method), style, band=False)
    return _per_layer(ax, "cosine to the fine-tuned target's outputs", "Layer outputs against the fine-tuned target")


def plot_drift(records: Sequence[Measurement], quantity: str, ax: "Axes | None" = None) -> "Axes":
    """How far layer inputs have moved after so many fine-tuning steps (BiCo, figure A): a line per layer.

    Arguments:
        quantity: "direction" or "magnitude".
    """
    from matplotlib import colormaps

    ax = ax or new_axes()
    chosen = [record for record in records if record.quantity == quantity]
    deepest = max((r.layer for r in chosen if r.layer is not None), default=0)
    for layer in sorted({r.layer for r in chosen}, key=lambda layer: deepest + 1 if layer is None else layer):
        found = curve([r for r in chosen if r.layer == layer], axis="at")
        colour = "black" if layer is None else colormaps["viridis"](0.9 * layer / max(1, deepest))
        _line(ax, found, "head" if layer is None else f"layer {layer}", colour, band=False)
    label = {"direction": "mean 1 − cos(x, x₀)", "magnitude": "mean |‖x‖ − ‖x₀‖| / ‖x₀‖"}[quantity]
    ax.set(xlabel="fine-tuning step", ylabel=label, ylim=(0, None))
    return _finish(ax, f"Drift of layer inputs: {quantity}")


def plot_cka(records: Sequence[Measurement], ax: "Axes | None" = None) -> "Axes":
    """CKA of two models' layer inputs, which need not be of one width (BiCo, figure B): a line per pair."""
    ax = ax or new_axes()
    chosen = [r for r in records if (r.quantity, r.series) == ("cka", BEFORE)]
    for index, pair in enumerate(dict.fromkeys(r.pair for r in chosen)):
        colour = f"C{index}" if index else QUANTITY_COLOURS["cka"]
        _line(ax, curve([r for r in chosen if r.pair == pair]), pair or "CKA", colour)
    return _per_layer(ax, "linear CKA of layer inputs (0–1)", "Shared geometry of layer inputs")


def plot_determined(records: Sequence[Measurement], ax: "Axes | None" = None) -> "Axes":
    """Share of a map's directions that the data determined: a line per signal (colour) and N (shade)."""
    ax = ax or new_axes()
    for series, group in by_series(records, "determined"):
        counts = sorted({r.samples for r in group})
        for index, samples in enumerate(counts):
            found = curve([r for r in group if r.samples == samples])
            shade = 0.35 + 0.65 * (index + 1) / len(counts)
            label = f"{SIGNAL_NAMES[Signal(series)]}, N={samples}"
            _line(ax, found, label, SIGNAL_COLOURS[Signal(series)], alpha=shade, band=False)
    ax.set(ylim=(0, 1.03))
    return _per_layer(ax, "determined directions (share of the smaller width)", "How much of a map the data determine")


def plot_spectrum(records: Sequence[Measurement], ax: "Axes | None" = None) -> "Axes":
    """Singular values of the cross-covariances at the largest N: a thin line per tensor, one colour per signal."""
    ax = ax or new_axes()
    largest = max((r.samples for r in records), default=0)
    for series, group in by_series(records, "spectrum"):
        chosen = [r for r in group if r.samples == largest and r.value > 0]
        label: str | None = SIGNAL_NAMES[Signal(series)]
        for tensor in dict.fromkeys(r.tensor for r in chosen):
            found = curve([r for r in chosen if r.tensor == tensor], axis="at")
            ax.plot(found.x, found.mean, color=SIGNAL_COLOURS[Signal(series)], lw=0.8, alpha=0.5, label=label)
            label = None
    ax.axhline(RANK_TOLERANCE, color="black", ls=":", lw=1, label="below: not determined")
    ax.set(yscale="log", ylim=(1e-9, 2), xlabel="share of directions, strongest first")
    ax.set_ylabel("singular value / largest")
    return _finish(ax, f"Spectra of the cross-covariances, N={largest}")


def new_axes() -> "Axes":
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure it ever made

    return Figure(figsize=(7, 4.5), layout="constrained").subplots()


def _line(
    ax: "Axes",
    found: Curve,
    label: str,
    colour: object,
    style: str = "-",
    alpha: float = 1.0,
    band: bool = True,
) -> None:
    # An open, larger marker stays visible where a solid line lies on a dashed one.
    shape = {"mfc": "white", "ms": 7} if style == "--" else {"ms": 4}
    ax.plot(found.x, found.mean, color=colour, ls=style, marker="o", alpha=alpha, label=label, **shape)
    if band:
        ax.fill_between(found.x, found.low, found.high, color=colour, alpha=0.12, lw=0)


def _per_layer(ax: "Axes", ylabel: str, title: str) -> "Axes":
    ax.set(xlabel="layer (transformer block of the target)", ylabel=ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return _finish(ax, title)


def _finish(ax: "Axes", title: str) -> "Axes":
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
