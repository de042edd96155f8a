"""LoRA adapters of a mini decoder, carried to others by `bico rehome` and measured beside all that they have to beat.

python -m benchmarks.adapters run --data FOLDER      # what is not there yet, cell by cell; may be stopped at any time
python -m benchmarks.adapters table                  # of what is there, as Markdown

FOLDER holds a folder for every task. A cell is one transfer of two adapters of a task, of one pair, at one N; its rows go to
out/adapters/rows/PAIR-TASK-N.json, and its artefacts into the store, where another N finds what it shares with this one.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adapters.carried import transfer
from benchmarks.adapters.later import read_on
from benchmarks.adapters.table import MEASURES, page, read, write_csv
from benchmarks.adapters.texts import TASKS, write
from benchmarks.adapters.train import RECIPES, train
from bico.models import zoo

SOURCE = "llama-mini-a"
PAIRS = {"b": "llama-mini-b", "later": "", "wide": "llama-mini-wide", "words": "llama-mini-words"}
"""Targets: one trained apart, the source itself read on, one that is wider and deeper, one with another tokenizer."""
SAMPLES = (64, 256, 16)
"""The first on all pairs, the others from one training to another of one shape."""
MAIN = [
    "bico", "bico:strength=effect", "theseus", "none+lora", "bico+lora", "theseus+lora", "cross-lora+lora",
]  # fmt: skip
"""An adapter that is trained on starts from factors that are not zero, whatever carried them: hence the last two."""
DATA_FREE = ["cross-lora", "pro-lora"]
MORE = ["bico:rope=pairs", "bico:strength=effect:rope=pairs", "output-only"]
EQUAL = {"later": ["naive", "input-only", "output-only"], "words": ["naive"]}
"""What asks for equal shapes: of everything; `output-only` of inputs alone, which b has too."""


@dataclass(frozen=True)
class Cell:
    """What one transfer measures."""

    pair: str
    task: str
    samples: int
    methods: tuple[str, ...]
    part: str = ""

    @property
    def name(self) -> str:
        return f"{self.pair}-{self.task}-{self.samples}{self.part}"


def cells() -> Iterator[Cell]:
    """Task by task, in the order of what they tell. What needs no samples is the same at every N."""
    first = SAMPLES[0]
    for task in TASKS:
        for pair in PAIRS:
            yield Cell(pair, task, first, (*MAIN, *DATA_FREE, *EQUAL.get(pair, [])))
            if pair == "b":
                yield Cell(pair, task, first, (*MORE,), "-more")
        yield from (Cell("b", task, samples, (*MAIN,)) for samples in SAMPLES[1:])


def run(cell: Cell, data: Path, out: Path) -> None:
    """Measures one cell."""
    source, texts = zoo.root() / SOURCE, write(cell.task, data, out / "data")
    adapters = [
        train(source, texts, recipe, out / "lora" / f"{SOURCE}-{cell.task}-{name}") for name, recipe in RECIPES.items()
    ]
    brief = {
        "source": f"zoo:{SOURCE}", "target": target_of(cell.pair, data, out), "tasks": [cell.task],
        "methods": [*cell.methods], "samples": [cell.samples],
    }  # fmt: skip
    found = transfer(brief, texts, adapters, out / "runs" / cell.name)
    rows = [
        row | {"pair": cell.pair, "task": cell.task, "adapter": row["task"].rpartition(f"{cell.task}-")[2]}
        | {name: found["outputs"]["measures"][label][name] for name in MEASURES}
        for row, label in zip(found["rows"], found["outputs"]["measures"], strict=True)
    ]  # fmt: skip
    (half := out / "rows" / f"{cell.name}.part").parent.mkdir(parents=True, exist_ok=True)
    half.write_text(json.dumps(rows, indent=1) + "\n")
    half.rename(half.with_suffix(".json"))


def target_of(pair: str, data: Path, out: Path) -> str:
    """The model that adapters are carried to, as `bico` is given it."""
    if PAIRS[pair]:
        return f"zoo:{PAIRS[pair]}"
    return str(read_on(SOURCE, data, out / "models" / f"{SOURCE}-later"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder that holds a folder per task")
    parser.add_argument("--out", type=Path, default=Path("out/adapters"))
    parser.add_argument("--csv", type=Path, help="of a table: write its rows there, too")
    given = parser.parse_args()
    if given.what == "table":
        rows = read(given.out / "rows")
        if given.csv is not None:
            write_csv(rows, given.csv)
        titles = {pair: f"{SOURCE} → {name or 'itself, read on'}" for pair, name in PAIRS.items()}
        print(page(rows, titles, TASKS, "python -m benchmarks.adapters table"))
        return
    for cell in cells():
        if (given.out / "rows" / f"{cell.name}.json").is_file():
            continue
        started = time.monotonic()
        run(cell, given.data, given.out)
        print(f"{cell.name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
