"""A table of all that was measured where there are several measures: losses of completions beside shares."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean

from bico.calibration.budget import Budget
from bico.methods.spec import Spec
from bico.reporting.names import label_of
from bico.reporting.rows import Row

SHOWN = {"loss": "loss (nats per token)", "perplexity": "perplexity", "bits per character": "bits per character"}
"""How those are told that are no shares; of models with two tokenizers, bits per character compare."""


def measures_table(rows: Sequence[Row]) -> str:
    """Returns a Markdown table of the rows' measures, a line per task, method and budget, means over draws; empty where rows
    have one measure only.
    """
    found: dict[tuple[str, Spec, Budget], list[Row]] = defaultdict(list)
    for row in rows:
        if row.measures:
            found[row.task, row.method, row.budget].append(row)
    if not found:
        return ""
    names = list(dict.fromkeys(name for group in found.values() for row in group for name in row.measures))
    names.sort(key=lambda name: (name not in SHOWN, list(SHOWN).index(name) if name in SHOWN else 0))
    tasks = len({task for task, _, _ in found}) > 1
    heads = [*["task"] * tasks, "model", "N", *(SHOWN.get(name, f"{name} (%)") for name in names)]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * tasks + " ---: |" * (1 + len(names))]
    for (task, method, budget), group in found.items():
        numbers = [_told(name, mean(row.measures[name] for row in group if name in row.measures)) for name in names]
        cells = [*[task] * tasks, label_of(method), str(budget.asked or "–"), *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_measures(rows: Sequence[Row], measures: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Returns rows with their measures, by their labels: a table that was read back has one only."""
    return [replace(row, measures=dict(measures.get(row.label, row.measures))) for row in rows]


def _told(name: str, value: float) -> str:
    if name == "perplexity":
        return f"{value:.4g}"
    return f"{value:.4f}" if name in SHOWN else f"{value:.1f}"
