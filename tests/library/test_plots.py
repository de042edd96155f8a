"""The plot of a run's rows when they are not a full grid: counts that begin at none, seeds and tasks that are missing."""

import pytest
from matplotlib.axes import Axes

from bico.reporting.plots import plot_accuracy
from bico.reporting.rows import Row
from bico.reporting.tables import markdown_table
from tests.rows import row

ZERO = [row("a", "zero-shot", 0, None, 10.0), row("b", "zero-shot", 0, None, 30.0)]
GROWING = {0: (50.0, 52.0), 20: (60.0, 66.0), 100: (70.0, 71.0)}
"""Accuracies of two seeds by labelled samples, beside unlabelled inputs."""


def rows(points: dict[int, tuple[float, ...]], method: str = "bico", unlabelled: int = 0) -> list[Row]:
    return [
        row("a", method, samples, seed, accuracy, unlabelled)
        for samples, accuracies in points.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def dots(ax: Axes) -> list[tuple[float, float]]:
    """What was measured with one seed: the pale dots (of error bars, matplotlib keeps the bars in the same list)."""
    found = [c.get_offsets() for c in ax.collections if hasattr(c, "get_sizes") and c.get_sizes().size]
    return sorted((float(x), float(y)) for offsets in found for x, y in offsets)


def means(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    lines = {container.get_label(): container.lines[0] for container in ax.containers}
    return {label: [(float(x), float(y)) for x, y in line.get_xydata()] for label, line in lines.items()}


def expected(points: dict[int, tuple[float, ...]]) -> list[tuple[float, float]]:
    return sorted((float(n), accuracy) for n, accuracies in points.items() for accuracy in accuracies)


@pytest.mark.parametrize("order", [(0, 20, 100), (100, 20, 0)], ids=["ascending", "descending"])
def test_a_series_that_begins_without_labels_is_drawn_whole(order: tuple[int, ...]) -> None:
    """With unlabelled inputs, no labels at all is a count like any other, not a reference line."""
    ax = plot_accuracy([*ZERO, *rows({n: GROWING[n] for n in order}, unlabelled=500)])
    assert dots(ax) == expected(GROWING)
    assert means(ax) == {"BiCo, 500 unlabelled": [(0, 51.0), (20, 63.0), (100, 70.5)]}
    ax.figure.canvas.draw()
    places = ax.transData.transform([(n, 50.0) for n in (0, 20, 100)])[:, 0]
    left, right = ax.transData.transform([(x, 50.0) for x in ax.get_xlim()])[:, 0]
    assert left < places[0] < places[1] < places[2] < right  # on the paper, and apart
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "20", "100"]


def test_no_labels_alone_are_points_at_none() -> None:
    ax = plot_accuracy([*ZERO, *rows({0: (50.0, 52.0)}, unlabelled=500)])
    assert dots(ax) == [(0, 50.0), (0, 52.0)] and means(ax) == {"BiCo, 500 unlabelled": [(0, 51.0)]}


def test_a_method_that_draws_nothing_stays_a_line_across() -> None:
    ax = plot_accuracy([*ZERO, *rows({20: (60.0,)})])
    across = [line for line in ax.lines if line.get_label().startswith("zero-shot")]
    assert [list(line.get_ydata()) for line in across] == [[20.0, 20.0]]
    assert dots(ax) == [(20, 60.0)]


def test_counts_may_have_different_seeds() -> None:
    points = {20: (60.0, 66.0, 63.0), 100: (70.0,)}
    ax = plot_accuracy([*ZERO, *rows(points)])
    assert dots(ax) == expected(points)
    assert means(ax) == {"BiCo": [(20, 63.0), (100, 70.0)]}


def test_variants_with_and_without_unlabelled_inputs_may_have_different_seeds() -> None:
    ax = plot_accuracy([*ZERO, *rows({20: (60.0, 66.0)}), *rows({20: (64.0,), 100: (72.0,)}, unlabelled=500)])
    assert dots(ax) == [(20, 60.0), (20, 64.0), (20, 66.0), (100, 72.0)]
    assert means(ax) == {"BiCo": [(20, 63.0)], "BiCo, 500 unlabelled": [(20, 64.0), (100, 72.0)]}


def test_methods_may_have_different_counts() -> None:
    ax = plot_accuracy([*ZERO, *rows({20: (60.0,), 100: (70.0,)}), *rows({50: (55.0,)}, method="theseus")])
    assert means(ax) == {"BiCo": [(20, 60.0), (100, 70.0)], "THESEUS": [(50, 55.0)]}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["20", "50", "100"]


def test_a_task_that_was_not_measured_is_a_dash_in_the_table() -> None:
    table = markdown_table([*ZERO, *rows({20: (60.0, 66.0), 100: (70.0,)})]).splitlines()
    assert table[3].startswith("| BiCo | 20 | 63.0 ± 4.2 | – |") and table[4].startswith("| BiCo | 100 | 70.0 | – |")
