"""Plots show the numbers they were given: read back from the axes."""

import pytest

from bico.analysis import Measurement
from bico.analysis.plots import (
    plot_alignment,
    plot_cka,
    plot_determined,
    plot_drift,
    plot_output_similarity,
    plot_spectrum,
)
from bico.methods import METHODS


def lines(ax: object) -> dict[str, tuple[list, list]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def legend(ax: object) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_alignment_has_a_line_per_quantity_and_side_of_the_map() -> None:
    records = [
        Measurement(quantity, series, "q", layer, value + layer / 10, task=task)
        for quantity, series, value in [("cka", "before", 0.7), ("cosine", "before", 0.1), ("cosine", "after", 0.6)]
        for layer in (0, 1)
        for task in "ab"
    ]
    ax = plot_alignment([*records, Measurement("cosine", "after", "pooled", None, 0.5)])
    shown = lines(ax)
    assert list(shown) == ["CKA before $Q_{in}$", "cosine before $Q_{in}$", "cosine after $Q_{in}$"] == legend(ax)
    assert shown["cosine after $Q_{in}$"] == ([0, 1], pytest.approx([0.6, 0.7]))
    assert "0–1" in ax.get_ylabel() and "layer" in ax.get_xlabel()


def test_outputs_have_one_colour_per_method_and_tell_its_settings_apart() -> None:
    names = ["zero-shot", "theseus", "bico", "bico:completion=svd"]
    ax = plot_output_similarity([Measurement("cosine", name, "q", 0, i / 10) for i, name in enumerate(names)])
    assert legend(ax) == ["target as it is", "THESEUS", "BiCo", "BiCo, completion svd"]
    assert [line.get_color() for line in ax.lines[1:]] == [METHODS[n].colour for n in ("theseus", "bico", "bico")]
    assert ax.lines[2].get_linestyle() != ax.lines[3].get_linestyle()
    assert [line.get_ydata()[0] for line in ax.lines] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_drift_has_a_line_per_layer_along_the_steps() -> None:
    records = [
        Measurement(quantity, "fine-tuning", "q", layer, step * scale, at=step)
        for quantity, scale in [("direction", 0.01), ("magnitude", 0.02)]
        for layer in (None, 1, 0)
        for step in (20, 10)
    ]
    ax = plot_drift(records, "magnitude")
    assert list(lines(ax)) == ["layer 0", "layer 1", "head"]
    assert lines(ax)["layer 1"] == ([10, 20], pytest.approx([0.2, 0.4]))
    assert "‖x‖" in ax.get_ylabel() and "magnitude" in ax.get_title() and "step" in ax.get_xlabel()
    assert lines(plot_drift(records, "direction"))["head"][1] == pytest.approx([0.1, 0.2])


def test_cka_has_a_line_per_pair_and_only_what_is_before_the_map() -> None:
    values = {("a", "before"): 0.8, ("b", "before"): 0.6, ("b", "after"): 0.1}
    ax = plot_cka([Measurement("cka", series, "q", 0, value, pair=pair) for (pair, series), value in values.items()])
    assert {label: y for label, (_, y) in lines(ax).items()} == {"a": [0.8], "b": [0.6]}
    assert len({line.get_color() for line in ax.lines}) == 2


def test_determined_directions_by_signal_and_sample_count() -> None:
    records = [
        Measurement("determined", series, "q", 0, value, samples=samples)
        for series, samples, value in [("input", 100, 1.0), ("input", 10, 0.9), ("output_grad", 10, 0.1)]
    ]
    ax = plot_determined([*records, Measurement("rank", "input", "q", 0, 64.0, samples=10)])
    shown = {label: y for label, (_, y) in lines(ax).items()}
    assert shown == {"inputs, N=10": [0.9], "inputs, N=100": [1.0], "output gradients, N=10": [0.1]}


def test_spectra_are_those_of_the_largest_n() -> None:
    records = [
        Measurement("spectrum", "input", tensor, 0, 10.0 ** (-at * samples), at=at, samples=samples)
        for tensor in "qk"
        for samples in (1, 2)
        for at in (0.0, 0.5, 1.0)
    ]
    ax = plot_spectrum(records)
    assert [list(line.get_ydata()) for line in ax.lines[:2]] == [pytest.approx([1, 0.1, 0.01])] * 2
    assert legend(ax) == ["inputs", "below: not determined"] and "N=2" in ax.get_title() and ax.get_yscale() == "log"
