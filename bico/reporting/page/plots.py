"""Plots as inline SVG: they need no library to be seen, take their colours from the style sheet, and tell each mark's numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from bico.last_steps.curve import StrengthCurve
from bico.reporting.page.html import Html, join, tag
from bico.reporting.page.scales import Axis, Counts, apart, ticks
from bico.reporting.page.series import Point, Series

MARKS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Frame:
    """The size of a plot, and what its margins hold."""

    width: float
    height: float
    left: float = 46
    right: float = 16
    top: float = 14
    bottom: float = 44

    @property
    def x(self) -> tuple[float, float]:
        return self.left, self.width - self.right

    @property
    def y(self) -> tuple[float, float]:
        return self.height - self.bottom, self.top


WIDE, NARROW, SMALL = Frame(780, 400, right=150), Frame(360, 330, left=36, right=10), Frame(360, 250, left=36, right=10)


def accuracy_plot(series: Sequence[Series], frame: Frame, title: str, unit: str = "%") -> Html:
    """Accuracy against calibration samples: means with their spread, every draw as a dot; what needs no samples is a line
    across.
    """
    counts = tuple(sorted({point.count for one in series if not one.flat for point in one.points}))
    everything = [value for one in series for point in one.points for value in _extent(point)]
    if not everything:
        return Html("")
    low, high = min(everything), max(everything)
    pad = max(1.0, 0.06 * (high - low))
    y = Axis(low - pad, high + pad, *frame.y)
    inset = 0.05 * (frame.x[1] - frame.x[0])
    x = Counts(counts or (1,), frame.x[0] + inset, frame.x[1] - inset)
    parts = [_grid(frame, y), _counts_axis(frame, counts, x)]
    parts += [_flat(one, frame, y, unit) for one in series if one.flat]
    parts += [_curve(one, n, x, y, unit) for n, one in enumerate(series) if not one.flat]
    if frame.right > NARROW.right:
        parts.append(_names_of_references(series, frame, y))
    return _svg(frame, title, parts)


def _names_of_references(series: Sequence[Series], frame: Frame, y: Axis) -> Html:
    """Beside their lines: they are what all others are held against."""
    named = [(one, one.points[0].mean.mean) for one in series if one.flat and one.kind == "reference"]
    places = apart([y(mean) for _, mean in named], 15, frame.top + 4, frame.y[0])
    return join(
        *(
            tag("text", f"{one.label} {mean:.1f}", x=frame.x[1] + 7, y=at + 4, class_="tick")
            for (one, mean), at in zip(named, places, strict=True)
        )
    )


def _extent(point: Point) -> tuple[float, ...]:
    sd = point.mean.sd or 0.0
    return (point.mean.mean - sd, point.mean.mean + sd, *point.seeds)


def _svg(frame: Frame, title: str, parts: Sequence[Html]) -> Html:
    # The numbers of every mark stand in the page's tables: to a screen reader a plot is one picture with a name.
    size = f"0 0 {frame.width:g} {frame.height:g}"
    return tag("svg", tag("title", title), *parts, viewBox=size, role="img", aria_label=title, class_="plot")


def _grid(frame: Frame, y: Axis) -> Html:
    (left, right), lines = frame.x, []
    for value in ticks(y.low, y.high, 5):
        at = y(value)
        lines.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
        lines.append(tag("text", f"{value:g}", x=left - 7, y=at + 4, class_="tick end"))
    return join(*lines)


def _counts_axis(frame: Frame, counts: Sequence[int], x: Counts) -> Html:
    bottom, middle = frame.y[0], sum(frame.x) / 2
    parts = [tag("line", x1=frame.x[0], x2=frame.x[1], y1=bottom, y2=bottom, class_="axis")]
    parts += [tag("text", str(n), x=x(n), y=bottom + 18, class_="tick mid") for n in counts]
    if counts:
        parts.append(tag("text", "calibration samples N", x=middle, y=bottom + 37, class_="tick mid"))
    return join(*parts)


def _flat(one: Series, frame: Frame, y: Axis, unit: str) -> Html:
    (point,) = one.points[:1]
    at, said = y(point.mean.mean), f"{one.label}: {point.mean} {unit}"
    return tag(
        "g",
        tag("title", said),
        tag("line", x1=frame.x[0], x2=frame.x[1], y1=at, y2=at, class_="flat"),
        tag("line", x1=frame.x[0], x2=frame.x[1], y1=at, y2=at, class_="hit"),
        class_=f"line {one.colour} {one.kind}",
        data_key=one.key,
        data_tip=said,
    )


def _curve(one: Series, number: int, x: Counts, y: Axis, unit: str) -> Html:
    places = [(x(point.count), y(point.mean.mean)) for point in one.points]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    parts = [tag("path", d=path, class_="stroke")]
    for point, (a, b) in zip(one.points, places, strict=True):
        said = f"{one.label}, N={point.count}: {point.mean} {unit}"
        if len(point.seeds) > 1:
            said += f" ({', '.join(f'{value:.1f}' for value in point.seeds)})"
        marks = [tag("title", said)]
        if point.mean.sd is not None:
            top, bottom = y(point.mean.mean + point.mean.sd), y(point.mean.mean - point.mean.sd)
            marks.append(tag("line", x1=a, x2=a, y1=top, y2=bottom, class_="spread"))
            marks += [tag("circle", cx=a, cy=y(value), r=2, class_="seed") for value in point.seeds]
        marks += [_mark(MARKS[number % len(MARKS)], a, b), tag("circle", cx=a, cy=b, r=13, class_="hit")]
        parts.append(tag("g", *marks, class_="point", data_tip=said))
    return tag("g", *parts, class_=f"line {one.colour} {one.kind}", data_key=one.key)


def _mark(shape: str, x: float, y: float, r: float = 4.5) -> Html:
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=r, class_="mark")
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
        "triangle": ((0, -1.25), (1.2, 0.95), (-1.2, 0.95)),
    }[shape]
    path = "M" + "L".join(f"{x + 0.9 * r * a:.1f} {y + 0.9 * r * b:.1f}" for a, b in corners) + "Z"
    return tag("path", d=path, class_="mark")


def swatch(one: Series, number: int) -> Html:
    """What stands for a line in the legend."""
    line = tag("line", x1=1, x2=27, y1=7, y2=7, class_="flat" if one.flat else "stroke")
    mark = None if one.flat else _mark(MARKS[number % len(MARKS)], 14, 7)
    marks = tag("g", line, mark, class_=f"line {one.colour} {one.kind}")
    return tag("svg", marks, viewBox="0 0 28 14", width=28, height=14, aria_hidden="true", class_="swatch")


def strength_plot(curves: Sequence[tuple[str, str, StrengthCurve]], frame: Frame, title: str) -> Html:
    """The loss at every strength, less that of the untouched target: a line a search, a dot where it chose.

    Arguments:
        curves: What each is called, its colour, and what the search saw.
    """
    changes = [[loss - curve.losses[0] for loss in curve.losses] for _, _, curve in curves]
    # What is far above the untouched target is of no interest, and would press all else flat.
    low = min(min(change) for change in changes)
    high = max(0.25 * max(0.1, -low), 0.02)
    y = Axis(low - 0.08 * (high - low), high, *frame.y)
    steps = sorted({strength for _, _, curve in curves for strength in curve.strengths})
    x = Axis(0, max(1, len(steps) - 1), frame.x[0] + 8, frame.x[1] - 8)
    at = {strength: x(n) for n, strength in enumerate(steps)}
    parts = [_loss_grid(frame, y), _strength_axis(frame, at)]
    for (label, colour, curve), change in zip(curves, changes, strict=True):
        inside = [(at[s], y(c)) for s, c in zip(curve.strengths, change, strict=True) if c <= high]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in inside)
        chosen = change[curve.strengths.index(curve.chosen)]
        said = f"{label}: strength {curve.chosen:g} chosen, {-chosen:.3g} nats below the untouched target"
        dot = [tag("circle", cx=at[curve.chosen], cy=y(chosen), r=r, class_=c) for r, c in ((4, "mark"), (12, "hit"))]
        point = tag("g", tag("title", said), *dot, class_="point", data_tip=said) if chosen <= high else None
        parts.append(tag("g", tag("path", d=path, class_="stroke thin"), point, class_=f"line {colour} transfer"))
    return _svg(frame, title, parts)


def _loss_grid(frame: Frame, y: Axis) -> Html:
    (left, right), parts = frame.x, []
    for value in ticks(y.low, y.high, 4):
        kind = "axis" if value == 0 else "grid"
        parts.append(tag("line", x1=left, x2=right, y1=y(value), y2=y(value), class_=kind))
        parts.append(tag("text", f"{value:g}", x=left - 7, y=y(value) + 4, class_="tick end"))
    return join(*parts)


def _strength_axis(frame: Frame, at: dict[float, float]) -> Html:
    bottom = frame.y[0]
    # As many ticks as have room; 0 and 1 before all others.
    shown = [s for s in at if s in (0, 0.25, 0.5, 1, 2, 4, 8)] or list(at)
    parts = [tag("text", f"{s:g}", x=at[s], y=bottom + 18, class_="tick mid") for s in shown]
    middle = sum(frame.x) / 2
    return join(*parts, tag("text", "strength of the carried update", x=middle, y=bottom + 37, class_="tick mid"))


def bar(share: float, said: str, colour: str = "s0") -> Html:
    """A share of a whole, as a bar beside its number.

    Arguments:
        share: 0..1; what is more fills the bar.
    """
    width = 100 * min(max(share, 0.0), 1.0)
    filled = tag("span", class_=f"fill {colour}", style=f"width:{width:.1f}%")
    return tag(
        "span", tag("span", filled, class_="bar", aria_hidden="true"), tag("span", said, class_="of"), class_="meter"
    )
