"""Results as Markdown: a table of means and spreads, and what it says in short."""

from collections.abc import Mapping, Sequence

from bico.methods.spec import Spec
from bico.reporting.names import label_of
from bico.reporting.references import FINE_TUNED, SOURCE_PROBE, TARGET_PROBE, untouched
from bico.reporting.rows import Row, summarise


def markdown_table(rows: Sequence[Row], beside: Mapping[str, Mapping[tuple[Spec, int], str]] | None = None) -> str:
    """Returns a Markdown table: a line per method and budget, a column per task, and the average.

    Arguments:
        beside: Further columns: by heading, what to write at (method, labelled samples asked for).
    """
    tasks, beside = list(dict.fromkeys(row.task for row in rows)), beside or {}
    summaries = summarise(rows)
    base = untouched(rows)
    starts = {s.budget.asked: s.average[0] for s in summaries if s.method == base.spec}
    counts = ["N", *["unlabelled"] * any(row.budget.unlabelled for row in rows)]
    lines = [
        "| " + " | ".join(["method", *counts, *tasks, "average", f"over {base.label}", *beside]) + " |",
        "| --- |" + " ---: |" * (len(counts) + len(tasks) + 2 + len(beside)),
    ]
    for s in summaries:
        start = starts.get(s.budget.asked if base is TARGET_PROBE else 0)
        gain = "" if start is None or s.method == base.spec else f"{s.average[0] - start:+.1f}"
        cells = [str(s.per_task[task]) if task in s.per_task else "–" for task in tasks]
        numbers = [str(n) if n else "–" for n in (s.budget.asked, s.budget.unlabelled)][: len(counts)]
        more = [column.get((s.method, s.budget.asked), "") for column in beside.values()]
        cells = [label_of(s.method), *numbers, *cells, str(s.average), gain, *more]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread_note(rows: Sequence[Row], seeds: str = "seeds") -> str:
    """What stands behind the sign ± in a table of these rows; empty where there is none, as with one seed."""
    return f", mean ± sd over the calibration {seeds}" if "±" in markdown_table(rows) else ""


_COMPARED = ("theseus", SOURCE_PROBE.name, "naive", "zero-pad", "crop")


def headlines(rows: Sequence[Row], method: Spec = Spec.parse("bico")) -> list[str]:  # noqa: B008 - frozen
    """Returns what a table says of a method at its largest N, in points, averaged over tasks; nothing if it has none."""
    averages = {(s.method, s.budget.asked): s.average for s in summarise(rows) if not s.budget.unlabelled}
    largest = max((asked for spec, asked in averages if spec == method), default=None)
    if largest is None:
        return []
    base = untouched(rows)
    zero = averages.get((base.spec, largest if base is TARGET_PROBE else 0))
    if zero is None:
        return []
    name, (mean, sd) = label_of(method), averages[method, largest]
    spread = "" if sd is None else f" ± {sd:.1f}"
    lines = [f"- N={largest}: {name} − {base.label} = {mean - zero[0]:+.1f}{spread} points"]
    for other in map(Spec.parse, _COMPARED):
        found = averages.get((other, largest), averages.get((other, 0)))
        if found is not None:
            lines.append(f"- N={largest}: {name} − {label_of(other)} = {mean - found[0]:+.1f} points")
    fine_tuned = averages.get((FINE_TUNED.spec, 0))
    if fine_tuned is not None and fine_tuned[0] != zero[0]:
        share = 100 * (mean - zero[0]) / (fine_tuned[0] - zero[0])
        lines.append(f"- N={largest}: {share:.0f} % of the gap to the fine-tuned target is closed")
    return lines
