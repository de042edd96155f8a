"""Tables of what was measured: a row per method and N, a column per task, means over adapters and spreads over draws."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from bico.reporting import provenance
from bico.reporting.rows import mean_sd

LOSS, ACCURACY = "loss", "label accuracy"
MEASURES = (LOSS, ACCURACY)
COLUMNS = ("pair", "task", "adapter", "method", "samples", "seed", *MEASURES)
NAMES = {
    "zero-shot": "target as it is",
    "source": "source as it is",
    "expert": "source with its own adapter",
    "naive": "copy",
    "cross-lora": "Cross-LoRA (no data)",
    "pro-lora": "ProLoRA (no data)",
    "none+lora": "retrained from nothing",
    "bico+lora": "retrained from what BiCo carries",
    "theseus+lora": "retrained from what THESEUS carries",
    "cross-lora+lora": "retrained from what Cross-LoRA carries",
    "theseus": "THESEUS",
    "input-only": "inputs alone aligned",
    "output-only": "outputs alone aligned",
    "bico": "BiCo",
    "bico:strength=effect": "BiCo, matched effect",
    "bico:rope=pairs": "BiCo, q and k within RoPE's pairs",
    "bico:strength=effect:rope=pairs": "BiCo, matched effect, q and k within RoPE's pairs",
}
"""In the order of the tables."""
Row = dict[str, Any]


def read(folder: Path) -> list[Row]:
    """All rows that were measured, each once: references and what needs no samples come with every N."""
    found: dict[tuple, Row] = {}
    for file in sorted(folder.glob("*.json")):
        for row in json.loads(file.read_text()):
            kept = {column: row[column] for column in COLUMNS}
            found[tuple(kept[column] for column in COLUMNS[:6])] = kept
    return list(found.values())


def write_csv(rows: Iterable[Row], file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def page(rows: Sequence[Row], titles: Mapping[str, str], tasks: Sequence[str], command: str) -> str:
    """Everything that was measured, with what the numbers are and where they come from."""
    return f"""# LoRA adapters of mini decoders, carried

Label accuracy in %, and in brackets the loss in nats per token of the completion: mean over the adapters of a task ({
        ", ".join(sorted({row["adapter"] for row in rows}))
    }), ± sd over the calibration draws. Losses of another tokenizer do not compare. Cells that are not there
were not measured.

Made by `python -m benchmarks.adapters run --data DATA` and `{command}` on {datetime.now(UTC):%Y-%m-%d}.
Machine: {provenance.machine(("torch", "transformers", "peft"))}.

{markdown(rows, titles, tasks)}"""


def markdown(rows: Sequence[Row], titles: Mapping[str, str], tasks: Sequence[str]) -> str:
    """A table per pair, of those that are there."""
    tasks = [task for task in tasks if any(row["task"] == task for row in rows)]
    return "\n\n".join(
        f"## {title}\n\n{_table([row for row in rows if row['pair'] == pair], tasks)}"
        for pair, title in titles.items()
        if any(row["pair"] == pair for row in rows)
    )


def _table(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    several = len(tasks) > 1
    head = [*tasks, "mean"] if several else tasks
    lines = [f"| | N | {' | '.join(head)} |", f"| --- | ---: |{' ---: |' * len(head)}"]
    keys = sorted({(row["samples"], row["method"]) for row in rows}, key=lambda key: (key[0], [*NAMES].index(key[1])))
    for samples, method in keys:
        chosen = [row for row in rows if (row["samples"], row["method"]) == (samples, method)]
        cells = [_cell([row for row in chosen if row["task"] == task]) for task in tasks]
        cells += [_cell(chosen) if {row["task"] for row in chosen} == set(tasks) else ""] * several
        lines.append(f"| {NAMES[method]} | {samples or '–'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    return f"{_over_draws(rows, ACCURACY, 1)} ({_over_draws(rows, LOSS, 2)})"


def _over_draws(rows: Sequence[Row], measure: str, digits: int) -> str:
    """Mean ± spread over draws of the mean over adapters (and tasks, of which every one has every draw)."""
    by_draw: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        by_draw[row["seed"]].append(row[measure])
    found = mean_sd([fmean(values) for values in by_draw.values()])
    return f"{found.mean:.{digits}f}" + ("" if found.sd is None else f" ± {found.sd:.{digits}f}")
