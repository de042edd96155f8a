"""The evidence grid on real text encoders: pairs, tasks and everything that a transfer has to beat, through the product's flow.

python -m benchmarks.real.grid PAIR TASK --data FOLDER [--samples 50] [--seeds 0,1,2] [--oracle]
python -m benchmarks.real.grid table                 # of what is there, as Markdown

A cell is one `bico transfer`; experts, covariances and maps are cached, so that a run that was stopped goes on where it was
and a second draw costs little. Behind it comes the control: an expert of another task, carried by the same maps. Rows go to
out/real/PAIR-TASK.json. Models are those of `make real-models`; FOLDER holds a folder for every task.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.commands import printed, transfer
from benchmarks.real.models import MINILM, MPNET, SMALL

PAIRS = {
    "minilm-mpnet": (MINILM, MPNET),
    "mpnet-minilm": (MPNET, MINILM),
    "l3-minilm": (SMALL, MINILM),
    "minilm-l3": (MINILM, SMALL),
}
TASKS = ("trec", "subj", "mrpc", "rte", "snli")
UNRELATED = {"trec": "subj", "subj": "trec", "mrpc": "trec", "rte": "subj", "snli": "subj"}
"""Whose expert is the control: of a task that has nothing to do with this one."""
METHODS = [
    "bico", "bico:strength=effect", "bico+search", "bico:strength=effect+search", "theseus", "theseus:strength=effect",
    "gradient-only", "few-shot", "bico+head", "bico:strength=effect+tune",
]  # fmt: skip
"""The baselines come by themselves: probes, few-shot, last steps without transport."""
ONE_SIDED = ["input-only", "output-only"]
"""For pairs of equal width only: a side without a signal keeps its coordinates."""
FINETUNE = {"steps": 300, "batch_size": 32, "lr": 5e-5, "warmup": 30}
CONTROL = "unrelated expert: "


def run(pair: str, task: str, given: argparse.Namespace) -> None:
    """Measures one cell of the grid and its control."""
    out = given.out / f"{pair}-{task}"
    out.mkdir(parents=True, exist_ok=True)
    source, target = (str(given.models / name) for name in PAIRS[pair])
    alike = MPNET not in PAIRS[pair]
    brief = {
        "source": source, "target": target, "tasks": [task], "methods": given.methods or METHODS + ONE_SIDED * alike,
        "samples": [int(n) for n in given.samples.split(",")], "seeds": [int(n) for n in given.seeds.split(",")],
        "finetune": FINETUNE, "oracle": given.oracle, "export": "none", "test_limit": given.test_limit,
        "baselines": not given.methods,
    }  # fmt: skip
    folders = ["--data", str(given.data / task)]
    rows = _transfer(out, brief, folders)
    if given.control:
        rows += control_of(pair, task, given, out, brief, folders)
    (given.out / f"{pair}-{task}.json").write_text(json.dumps(rows, indent=1) + "\n")


def control_of(
    pair: str, task: str, given: argparse.Namespace, out: Path, brief: dict, folders: list[str]
) -> list[dict]:
    """Rows of another task's expert, carried by the same maps."""
    source, other = brief["source"], UNRELATED[task]
    expert = given.out / "experts" / f"{PAIRS[pair][0]}-{other}.safetensors"
    if not expert.is_file():
        expert.parent.mkdir(parents=True, exist_ok=True)
        printed("finetune", source, "--task", other, "--data", str(given.data / other), "--out", str(expert))
    carried = [method for method in brief["methods"] if method.startswith("bico")]
    control = brief | {"methods": carried, "oracle": False, "baselines": False}
    return [
        row | {"method": CONTROL + row["method"]}
        for row in _transfer(out / "control", control, [*folders, "--expert", str(expert)])
        if row["method"] in control["methods"]
    ]


def _transfer(out: Path, brief: dict, more: list[str]) -> list[dict]:
    started = time.monotonic()
    rows = transfer(brief, out, *more)["rows"]
    print(f"{out.name}: {len(rows)} rows in {time.monotonic() - started:.0f} s", flush=True)
    return rows


def table(out: Path) -> str:
    """Mean and spread over the draws, a row per method and a column per pair and task."""
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    columns = []
    for pair in PAIRS:
        for task in TASKS:
            if (found := out / f"{pair}-{task}.json").is_file():
                columns.append(column := f"{pair}, {task}")
                for row in json.loads(found.read_text()):
                    name = f"{row['method']}, N={row['samples']}" if row.get("samples") else row["method"]
                    cells[name][column].append(row["accuracy"])
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [
        f"| {name} | {' | '.join(_shown(found[column]) for column in columns)} |" for name, found in cells.items()
    ]
    return "\n".join(lines)


def _shown(values: list[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=[*PAIRS, "table"])
    parser.add_argument("task", nargs="?", choices=TASKS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder that holds a folder per task")
    parser.add_argument("--models", type=Path, default=Path("out/real-models"))
    parser.add_argument("--samples", default="50")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="these alone, without baselines")
    parser.add_argument("--test-limit", type=int, default=1000, help="only the first so many test samples")
    parser.add_argument("--oracle", action="store_true", help="fine-tune the target, too")
    parser.add_argument(
        "--control", action=argparse.BooleanOptionalAction, default=True, help="an unrelated expert, too"
    )
    parser.add_argument("--out", type=Path, default=Path("out/real"))
    given = parser.parse_args()
    if given.pair == "table":
        print(table(given.out))
    elif given.task is None:
        parser.error("which task?")
    else:
        run(given.pair, given.task, given)


if __name__ == "__main__":
    main()
