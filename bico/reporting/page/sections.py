"""The parts of a page, each from a run's record; one that has nothing to say is left out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from bico.reporting.advice import advice
from bico.reporting.block_report import NAMES, BlockReport, worst
from bico.reporting.names import label_of, short_name
from bico.reporting.page.html import Html, join, link_free, tag
from bico.reporting.page.plots import NARROW, SMALL, WIDE, accuracy_plot, bar, strength_plot, swatch
from bico.reporting.page.record import RunRecord
from bico.reporting.page.results import results_table
from bico.reporting.page.series import colours, series_of
from bico.reporting.page.verdict import outcome_of, start_label, verdict
from bico.reporting.references import start_of
from bico.reporting.strengths import strength_lines

WRITTEN = "the model that was written", "the models that were written"
MEASURED = {"head": ", by each model's own head", "probe": ", by linear probes on the calibration samples"}
"""What gave the numbers, for people."""


def section(title: str, *children: Html | str | None, name: str) -> Html:
    """A part of the page with a heading, which a screen reader can jump to."""
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *children, id=name, aria_labelledby=f"{name}-title")


def scrolling(table: Html, name: str) -> Html:
    """A table that may be wider than a phone: it scrolls by itself, also by keyboard."""
    return tag("div", table, class_="scroll", role="region", aria_label=name, tabindex=0)


def plain_table(caption: str, heads: Sequence[str], lines: Sequence[Sequence[Html | str]], numbers: int = 0) -> Html:
    """A table whose first column names its lines.

    Arguments:
        numbers: How many columns at the end hold numbers.
    """
    kinds = [None] * (len(heads) - numbers) + ["num"] * numbers
    head = tag("tr", *(tag("th", one, scope="col", class_=kind) for one, kind in zip(heads, kinds, strict=True)))
    body = [
        tag(
            "tr",
            tag("th", line[0], scope="row", class_="short" if len(line[0]) < 24 else None),
            *(tag("td", v, class_=k) for v, k in zip(line[1:], kinds[1:], strict=True)),
        )
        for line in lines
    ]
    return scrolling(
        tag("table", tag("caption", tag("span", caption, class_="stay")), tag("thead", head), tag("tbody", *body)),
        caption,
    )


def opening(record: RunRecord) -> Html:
    """What came out, in a sentence and four numbers."""
    pair = f"{short_name(record.source)} → {short_name(record.target)}"
    found = outcome_of(record)
    tiles: list[Html] = []
    if found is not None:
        per = "" if len(found.tasks) == 1 else " (average)"
        if found.before is not None:
            tiles.append(_tile(f"{found.before:.1f} %", f"the target as it is{per}"))
        tiles.append(_tile(f"{found.after:.1f} %", (WRITTEN[bool(per)] if found.written else found.what), "after"))
        if found.gain is not None:
            kind = "up" if found.gain > 0 else "down"
            tiles.append(_tile(f"{found.gain:+.1f}".replace("-", "−"), "points gained", kind))
        if found.closed is not None:
            tiles.append(_tile(f"{found.closed:.0f} %", f"of the way to fine-tuning ({found.fine_tuned:.1f} %)"))
    several = "s" if record.expert and "=" in record.expert else ""
    expert = f"the expert{several} {record.expert}" if record.expert else "an expert fine-tuned for this run"
    tasks = ", ".join(dict.fromkeys(row.task for row in record.rows))
    by = MEASURED.get(record.measured_by, "")
    about = f"{expert}, carried over for {tasks}. Test {record.measure} in %{by}."
    loud = [choice.sentence for choice in record.choices if not choice.gains]
    return tag(
        "header",
        tag("p", "BiCo", tag("span", " · "), pair, class_="eyebrow"),
        tag("h1", verdict(record)),
        tag("p", about[0].upper() + about[1:], class_="lead"),
        tag("dl", *tiles, class_="tiles") if tiles else None,
        *(tag("p", one, class_="loud", role="alert") for one in loud),
    )


def _tile(number: str, label: str, kind: str = "") -> Html:
    return tag("div", tag("dt", label), tag("dd", number), class_=f"tile {kind}".strip())


def curves(record: RunRecord) -> Html | None:
    """Accuracy against samples: the average large, tasks small."""
    colour = colours(record.rows)
    series = series_of(record.rows, colour)
    tasks = list(dict.fromkeys(row.task for row in record.rows))
    where = f"average over {', '.join(tasks)}" if len(tasks) > 1 else tasks[0]
    title = f"Test {record.measure} against calibration samples, {where}"
    plots = [
        tag("div", accuracy_plot(series, frame, title), class_=kind)
        for frame, kind in ((WIDE, "wide"), (NARROW, "narrow"))
    ]
    legend = tag(
        "ul",
        *(
            tag(
                "li",
                tag(
                    "button",
                    swatch(one, n),
                    tag("span", one.label),
                    type="button",
                    aria_pressed="true",
                    data_key=one.key,
                ),
            )
            for n, one in enumerate(series)
        ),
        class_="legend",
        aria_label="Lines of the plot: press to hide or show",
    )
    note = f"Test {record.measure} in %, {where}. Lines are means over the calibration draws, bars their standard deviation, small dots the draws."
    whole = tag("figure", *plots, legend, tag("figcaption", note))
    small = None
    if len(tasks) > 1:
        parts = [
            tag(
                "figure",
                tag("h3", task),
                accuracy_plot(series_of(record.rows, colour, task), SMALL, f"Test {record.measure} on {task}"),
            )
            for task in tasks
        ]
        small = tag("div", *parts, class_="small")
    return section("Accuracy against samples", whole, small, name="accuracy")


def table(record: RunRecord) -> Html:
    """All numbers, and what they say."""
    found = results_table(record.rows, colours(record.rows), record.measure)
    return section("Results", scrolling(found, "Results"), *_advice(record), name="results")


def _advice(record: RunRecord) -> list[Html]:
    said: list[Html] = []
    for part in advice(list(record.rows)):
        if part.startswith("- "):
            said.append(tag("ul", *(tag("li", link_free(line[2:])) for line in part.splitlines()), class_="said"))
        elif part.endswith(":"):
            said.append(tag("h3", part[:-1]))
        else:
            said.append(tag("p", link_free(part), class_="loud"))
    return said


def models(record: RunRecord) -> Html | None:
    """What was written, why, and how good it is."""
    if not record.models:
        return None
    choices = {choice.cell: choice for choice in record.choices}
    lines: list[list[Html | str]] = []
    for written in record.models.values():
        start, choice = start_of(written.row, record.rows), choices.get(written.row.cell)
        gain = "" if start is None else f"{written.row.accuracy - start:+.1f}".replace("-", "−")
        held = "" if choice is None else f"{choice.score:.1f} ({choice.start:.1f})"
        drawn = "" if written.row.seed is None else f", {written.row.budget}, seed {written.row.seed}"
        name = join(label_of(written.row.method) + drawn, tag("code", written.folder, class_="path"))
        lines.append([written.row.task, name, held, f"{written.row.accuracy:.1f}", gain])
    heads = [record_measure(record, "held out"), f"test {record.measure} (%)", "gain"]
    caption = f"Models written, gain in points over {start_label(record)}."
    if choices:
        caption += " Held out: of the model, in brackets of the target as it is, in %."
    told = [tag("li", choice.sentence) for choice in record.choices if choice.gains]  # the others stand above, loudly
    return section(
        "Models written",
        plain_table(caption, ["task", "model", *heads], lines, 3),
        tag("ul", *told, class_="said") if told else None,
        name="models",
    )


def record_measure(record: RunRecord, what: str) -> str:
    """A column's heading with its unit."""
    return f"{what} (%)" if record.measure == "accuracy" else f"{what} {record.measure} (%)"


def strengths(record: RunRecord) -> Html | None:
    """What line searches over the strength saw."""
    if not record.curves:
        return None
    colour = colours(record.rows)
    drawn = [(cell.label.replace("/", ", "), colour.get(cell.method, "s0"), curve) for cell, curve in record.curves]
    title = "Loss on the labels against the strength of the carried update, less the untouched target's"
    plots = [
        tag("div", strength_plot(drawn, frame, title), class_=kind)
        for frame, kind in ((replace(WIDE, right=16), "wide"), (NARROW, "narrow"))
    ]
    note = "Cross-entropy of the labelled samples in nats, less that of the target as it is: below zero the update helps. A line a search, a dot where it chose."
    found = [tag("li", line.removeprefix("- ")) for line in strength_lines(dict(record.curves))]
    return section(
        "Strength", tag("figure", *plots, tag("figcaption", note)), tag("ul", *found, class_="said"), name="strength"
    )


def layers(record: RunRecord) -> Html | None:
    """Block by block: how much of the maps the samples fixed, and how much the update changes."""
    if not record.blocks:
        return None
    parts: list[Html] = []
    for task in dict.fromkeys(block.task for block in record.blocks):
        mine = [block for block in record.blocks if block.task == task]
        parts += [tag("h3", f"{task}: {_told(record.looked_into.get(task, ''), task)}"), _blocks(mine)]
    return section("Layer by layer", tag("p", worst(record.blocks)), *parts, name="layers")


def _told(label: str, task: str) -> str:
    """A cell's label behind its task's name.

    Example:
        >>> _told("digits/bico/N=100/seed=0", "digits")
        'bico, N=100, seed 0'
    """
    return label.removeprefix(f"{task}/").replace("/", ", ").replace("seed=", "seed ")


def _blocks(blocks: Sequence[BlockReport]) -> Html:
    signals = list(dict.fromkeys(signal for block in blocks for signal in block.determined))
    effect = any(block.effect is not None for block in blocks)
    heads = ["block", *(f"{NAMES.get(s, s)} determined" for s in signals), "weights changed by"]
    heads += ["outputs moved by about"] * effect + ["verdict"]
    most = max((block.change for block in blocks), default=0.0) or 1.0
    moved = max((block.effect or 0.0 for block in blocks), default=0.0) or 1.0
    lines: list[list[Html | str]] = []
    for block in blocks:
        line: list[Html | str] = [block.block]
        line += [
            bar(block.determined[s], f"{100 * block.determined[s]:.0f} %", "s0") if s in block.determined else "–"
            for s in signals
        ]
        line.append(bar(block.change / most, f"{100 * block.change:.2f} %", "s1"))
        if effect:
            line.append("–" if block.effect is None else bar(block.effect / moved, f"{100 * block.effect:.3g} %", "s2"))
        lines.append([*line, block.verdict])
    caption = "Of each block's maps, the share of directions that the calibration samples determined, and how much the update changes."
    return plain_table(caption, heads, lines)


def calibration(record: RunRecord) -> Html | None:
    """What the maps were made from."""
    if not record.draws:
        return None
    lines: list[list[Html | str]] = []
    groups: dict[tuple, list[int]] = {}
    for draw in record.draws:
        key = draw.task, draw.sampling, draw.samples, draw.drawn, draw.shared_tokens
        groups.setdefault(key, []).append(draw.seed)
    shared = any(draw.shared_tokens is not None for draw in record.draws)
    for (task, sampling, samples, drawn, tokens), seeds in groups.items():
        line: list[Html | str] = [task, sampling, ", ".join(map(str, seeds)), ", ".join(map(str, samples)), str(drawn)]
        lines.append([*line, *(["–" if tokens is None else f"{100 * tokens:.0f} %"] if shared else [])])
    heads = ["task", "drawn", "seeds", "counts asked for", "samples of the largest set"]
    heads += ["characters cut alike by both tokenizers"] * shared
    caption = (
        "Samples that the maps were made from; the sets of one seed are nested. Their indices are in calibration.json."
    )
    return section("Calibrated on", plain_table(caption, heads, lines, 1 + shared), name="calibration")


def cost(record: RunRecord) -> Html | None:
    """What was computed, how long it took, and what had been planned."""
    total = sum(seconds for _, seconds in record.phases)
    if not total and not record.stages:
        return None
    parts: list[Html] = []
    counts: Counter[str] = Counter()
    for found in record.stages.values():
        counts.update(found)
    said = f"{counts['computed']} stages computed, {counts['cached']} found in the store."
    if record.planned:
        keys = dict.fromkeys([*record.planned, *record.measured])
        lines: list[list[Html | str]] = [
            [key, record.planned.get(key, "–"), record.measured.get(key, "–")] for key in keys
        ]
        parts.append(plain_table("Cost against plan", ["quantity", "planned", "came out"], lines, 2))
    elif record.measured:
        said += f" In all {', '.join(f'{key} {value}' for key, value in record.measured.items())}."
    most = max((seconds for _, seconds in record.phases), default=0.0) or 1.0
    if record.phases:
        lines = [[name, bar(seconds / most, f"{seconds:.1f} s")] for name, seconds in record.phases]
        parts.append(plain_table("Phases, in order; stages that were found take no time.", ["phase", "time"], lines))
    if record.stages:
        lines = [[name, str(c["computed"]), str(c["cached"])] for name, c in record.stages.items()]
        heads = ["stage", "computed", "found"]
        for head, times in (("planned (s)", record.expected), ("took (s)", record.took)):
            if times:
                heads.append(head)
                lines = [
                    [*line, f"{times.get(name, 0.0):.1f}"] for line, name in zip(lines, record.stages, strict=True)
                ]
        table = plain_table("Stages", heads, lines, len(heads) - 1)
        parts.append(tag("details", tag("summary", "All stages"), table))
    return section("Cost", tag("p", said), *parts, name="cost")


def repeat(record: RunRecord) -> Html:
    """How to do it again, and with what it was done."""
    parts: list[Html] = []
    if record.command:
        copy = tag("button", "Copy", type="button", class_="copy", data_copy="command")
        parts.append(
            tag("div", tag("pre", tag("code", record.command, id="command"), tabindex=0), copy, class_="command")
        )
    if record.settings:
        settings = tag("pre", tag("code", record.settings), tabindex=0)
        parts.append(tag("details", tag("summary", "settings.yaml"), settings))
    if record.notes:
        parts += [tag("h3", "Taken for granted"), tag("ul", *(tag("li", note) for note in record.notes), class_="said")]
    digests = [(name, tag("code", digest, class_="digest")) for name, digest in record.digests.items()]
    if record.identity:
        digests.append(("this run", tag("code", record.identity, class_="digest")))
    parts += [tag("h3", "Digests (sha256)"), _pairs(digests)] if digests else []
    versions = [(name, number) for name, number in record.versions.items()]
    about = [("machine", record.machine)] if record.machine else []
    parts += [tag("h3", "Made with"), _pairs([*versions, *about])] if versions or about else []
    where = [(name, tag("code", address)) for name, address in record.links.items()]
    parts += [tag("h3", "Elsewhere"), _pairs(where)] if where else []
    return section("Do it again", *parts, name="repeat")


def _pairs(pairs: Sequence[tuple[str, Html | str]]) -> Html:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_="pairs")
