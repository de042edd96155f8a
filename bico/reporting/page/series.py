"""The rows of a run as lines of a plot: what is drawn, in which colour, and what it is called."""

from collections.abc import Sequence
from dataclasses import dataclass

from bico.methods.spec import Spec
from bico.methods.variant import carries_expert
from bico.reporting.names import label_of
from bico.reporting.references import EXPERT, SOURCE, is_reference
from bico.reporting.rows import Mean, Row, by_seed, summarise

COLOURS = 8
"""Colours of the style sheet; with more methods they come again, with other dashes."""


@dataclass(frozen=True)
class Point:
    """One method at one count of samples."""

    count: int
    mean: Mean
    seeds: tuple[float, ...]
    """Of each calibration draw, the average over tasks."""


@dataclass(frozen=True)
class Series:
    """One line."""

    key: str
    """For the legend and the lines that it switches, such as "m3"."""
    label: str
    colour: str
    """A class of the style sheet."""
    kind: str
    """transfer, rival or reference."""
    points: tuple[Point, ...]
    flat: bool
    """Whether nothing was drawn, so that it is the same at every count."""


def kind_of(method: Spec) -> str:
    """What a row is: a transfer, a rival without the expert, or a reference."""
    if is_reference(method):
        return "reference"
    return "transfer" if carries_expert(method) else "rival"


def colours(rows: Sequence[Row]) -> dict[Spec, str]:
    """Classes of the style sheet by method: transfers first, so that theirs differ most."""
    methods = list(dict.fromkeys(row.method for row in rows))
    own = sorted((m for m in methods if kind_of(m) != "reference"), key=lambda m: kind_of(m) == "rival")
    found = {method: f"s{n % COLOURS}" for n, method in enumerate(own)}
    return found | {method: "ref" for method in methods if kind_of(method) == "reference"}


def series_of(rows: Sequence[Row], colour: dict[Spec, str], task: str | None = None) -> list[Series]:
    """The lines of a plot of accuracy against samples. References on another model than the target are left out.

    Arguments:
        task: Of this task alone; by default the average over all.
    """
    kept = [row for row in rows if row.method not in (EXPERT.spec, SOURCE.spec) and task in (None, row.task)]
    order = list(colour)
    found: list[Series] = []
    summaries = summarise(kept)
    for method, unlabelled in dict.fromkeys((s.method, s.budget.unlabelled) for s in summaries):
        mine = sorted(
            (s for s in summaries if (s.method, s.budget.unlabelled) == (method, unlabelled)), key=lambda s: s.budget
        )
        own = [row for row in kept if (row.method, row.budget.unlabelled) == (method, unlabelled)]
        points = tuple(
            Point(s.budget.asked, s.average, tuple(by_seed(row for row in own if row.budget == s.budget).values()))
            for s in mine
        )
        label = label_of(method) + f", {unlabelled} unlabelled" * bool(unlabelled)
        key = f"m{order.index(method)}" + f"u{unlabelled}" * bool(unlabelled)
        flat = all(row.seed is None for row in own)
        found.append(Series(key, label, colour[method], kind_of(method), points, flat))
    return found
