"""Runs a cell: one transfer of the product, and one of the target's own fine-tuning to itself."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import commands
from benchmarks.measure import machine
from benchmarks.shares.pairs import PAIRS, Pair, methods_of
from bico.finetune import MINI

COPY = "naive"


def folder_of(given: argparse.Namespace) -> Path:
    """Where the rows of a question lie."""
    return given.out / given.question


def run(name: str, tasks: list[str], given: argparse.Namespace) -> None:
    """Measures a pair's tasks, one after the other."""
    pair, methods = PAIRS[name], methods_of(given.question, PAIRS[name])
    with_gap = given.question == "strength"
    for task in tasks or pair.tasks:
        for expert in pair.experts:
            place = folder_of(given) / f"{name}-{task}-{expert}.json"
            started = time.monotonic()
            rows = transfer(pair, pair.source, task, expert, methods, given, oracle=with_gap and not pair.probed)
            if with_gap and pair.probed:
                rows += [
                    row | {"method": "fine-tuned, probed"}
                    for row in transfer(pair, pair.target, task, expert, [COPY], given, oracle=False)
                    if row["method"] == COPY
                ]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=0) + "\n")
            print(f"{place.stem}: {len(rows)} rows in {time.monotonic() - started:.0f} s", flush=True)


def transfer(
    pair: Pair, source: str, task: str, expert: int, methods: list[str], given: argparse.Namespace, *, oracle: bool
) -> list[dict]:
    """Rows of one run of the product."""
    finetune = (pair.finetune or asdict(MINI)) | {"seed": expert}
    brief = {
        "source": _model(source, given), "target": _model(pair.target, given), "tasks": [task], "methods": methods,
        "samples": list(pair.samples), "seeds": [0, 1, 2], "finetune": finetune, "oracle": oracle, "rivals": "none",
        "export": "none", "test_limit": pair.limit,
    }  # fmt: skip
    scratch = Path("out") / "shares" / f"{Path(source).name.replace(':', '-')}-{task}-{expert}"
    data = ["--data", str(given.data / task)] if (given.data / task).is_dir() else []
    return commands.transfer(brief, scratch, *data)["rows"]


def _model(name: str, given: argparse.Namespace) -> str:
    return name if name.startswith("zoo:") else str(given.models / name)
