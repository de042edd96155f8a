"""The table of a page: methods by samples, a column per task, and what each gains over the target as it is."""

from collections.abc import Sequence
from itertools import groupby

from bico.reporting.names import label_of
from bico.reporting.page.html import Html, join, tag
from bico.reporting.page.series import kind_of
from bico.reporting.references import EXPERT, SOURCE, SOURCE_PROBE, TARGET_PROBE, untouched
from bico.reporting.rows import Mean, Row, Summary, summarise

KINDS = {
    "transfer": "Transfers",
    "rival": "Without the expert: what a transfer has to beat",
    "reference": "References",
}


def results_table(rows: Sequence[Row], colour: dict, measure: str) -> Html:
    """The table, one body per method, so that a screen reader names method and samples with every number."""
    tasks, base, summaries = list(dict.fromkeys(row.task for row in rows)), untouched(rows), summarise(rows)
    several, unlabelled = len(tasks) > 1, any(row.budget.unlabelled for row in rows)
    heads = ["N", *["unlabelled"] * unlabelled, *tasks, *["average"] * several, "gain"]
    head = tag("tr", tag("th", "method", scope="col"), *(tag("th", one, scope="col", class_="num") for one in heads))
    starts = {s.budget.asked: s.average.mean for s in summaries if s.method == base.spec}
    best = _best(summaries, tasks)
    gains = [_gain(s, starts, base is TARGET_PROBE) for s in summaries if kind_of(s.method) != "reference"]
    largest = max((abs(gain) for gain in gains if gain is not None), default=1.0)
    bodies = []
    for kind, title in KINDS.items():
        mine = [s for s in summaries if kind_of(s.method) == kind]
        if not mine:
            continue
        bodies.append(
            tag(
                "tbody",
                tag("tr", tag("th", tag("span", title, class_="stay"), scope="rowgroup", colspan=1 + len(heads))),
                class_="kind",
            )
        )
        for method, found in groupby(sorted(mine, key=lambda s: list(colour).index(s.method)), lambda s: s.method):
            lines = []
            group = sorted(found, key=lambda s: s.budget)
            for n, s in enumerate(group):
                gain = None if s.method == base.spec else _gain(s, starts, base is TARGET_PROBE)
                cells: list[Html] = []
                if n == 0:
                    dot = tag("span", class_=f"dot {colour[method]} {kind}", aria_hidden="true")
                    name = join(dot, label_of(method))
                    cells.append(tag("th", name, scope="rowgroup", rowspan=len(group), class_="method"))
                cells.append(tag("th", str(s.budget.asked) if s.budget.asked else "–", scope="row", class_="num"))
                if unlabelled:
                    cells.append(tag("td", str(s.budget.unlabelled) if s.budget.unlabelled else "–", class_="num"))
                for task in [*tasks, *[None] * several]:
                    mean = s.average if task is None else s.per_task.get(task)
                    cells.append(_number(mean, best.get((task, s.method, s.budget), False)))
                cells.append(_gain_cell(gain, None if kind == "reference" else largest))
                lines.append(tag("tr", *cells))
            bodies.append(tag("tbody", *lines))
    spread = " Mean ± standard deviation over the calibration draws." if "±" in "".join(map(str, bodies)) else ""
    gained = f"Gain: points over {base.label}, the target as it is"
    caption = f"Test {measure} in %.{spread} {gained}{', on average' if several else ''}. Bold: the best that was done to the target."
    return tag(
        "table", tag("caption", tag("span", caption, class_="stay")), tag("thead", head), *bodies, class_="results"
    )


def _gain(s: Summary, starts: dict[int, float], by_samples: bool) -> float | None:
    start = starts.get(s.budget.asked if by_samples else 0)
    elsewhere = s.method in (EXPERT.spec, SOURCE.spec, SOURCE_PROBE.spec)  # not measured on the target
    return None if start is None or elsewhere else s.average.mean - start


def _best(summaries: Sequence[Summary], tasks: Sequence[str]) -> dict[tuple, bool]:
    """Where the highest mean of a column stands, of all that is done to the target."""
    found: dict[tuple, bool] = {}
    own = [s for s in summaries if kind_of(s.method) != "reference"]
    for task in (*tasks, None):
        means = {
            (s.method, s.budget): (s.average if task is None else s.per_task[task]).mean
            for s in own
            if task is None or task in s.per_task
        }
        if means:
            found[(task, *max(means, key=lambda key: means[key]))] = True
    return found


def _number(mean: Mean | None, best: bool) -> Html:
    if mean is None:
        return tag("td", "–", class_="num")
    spread = None if mean.sd is None else tag("span", f" ± {mean.sd:.1f}", class_="sd")
    said = join(f"{mean.mean:.1f}", spread)
    if best:
        said = join(tag("strong", said), tag("span", " (best)", class_="aside"))
    return tag("td", said, class_="num")


def _gain_cell(gain: float | None, largest: float | None) -> Html:
    if gain is None:
        return tag("td", class_="num gain")
    share = min(1.0, abs(gain) / largest) if largest else 0.0
    kind = "up" if gain > 0.05 else "down" if gain < -0.05 else "flat"
    return tag(
        "td",
        tag("span", class_=f"amount {kind}", style=f"width:{100 * share:.0f}%", aria_hidden="true"),
        tag("span", f"{gain:+.1f}".replace("-", "−"), class_=kind),
        class_="num gain",
    )
