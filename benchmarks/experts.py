"""Eight experts in one run against eight runs, and the model that they make together.

    python -m benchmarks.experts                 # three draws of both settings; what was done before is not done again
    python -m benchmarks.experts --draws 1 --settings tasks

`tasks`: eight tasks (the embedded ones, taken apart by their classes), an expert each. `seeds`: one task, lamps, and eight experts
that were fine-tuned with other seeds. Experts of mini-a are carried to mini-b by BiCo with 50 samples: all in one run, in eight
runs that share a store, and in eight that share nothing. Then what the one run has written is merged: task arithmetic at strength
1, with searched strengths, and TIES with searched strengths, measured on each task beside the target as it is and each expert
alone. CPU seconds are those of all processes, and hardly depend on what else the machine does; times do. Writes
benchmarks/results/experts.md, and each part as it comes to out/experts.
"""

import argparse
import json
import re
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import ROOT, Took, bico, python, write
from benchmarks.measure import table
from benchmarks.tasks_apart import EIGHT

RESULTS = Path(__file__).parent / "results" / "experts.md"
SCRATCH = ROOT / "out" / "experts"
PREFECT = SCRATCH / "prefect"
PAIR = ["--source", "zoo:mini-a", "--target", "zoo:mini-b", "--methods", "bico", "--samples", "50", "--rivals", "none"]
MERGES = {
    "sum, strength 1": ["--how", "sum", "--strengths", "1"],
    "sum, searched": ["--how", "sum"],
    "TIES, searched": ["--how", "ties"],
}
SETTINGS = ("tasks", "seeds")
WAYS = ("one run", "eight runs, one store", "eight runs apart")


def experts_of(setting: str) -> list[tuple[str, Path]]:
    """(task, expert's file) of each of the eight."""
    made = SCRATCH / "made"
    if setting == "tasks":
        return [(task, made / f"{task}.safetensors") for task in EIGHT]
    return [("lamps", made / f"lamps-seed-{seed}.safetensors") for seed in range(8)]


def data_of(chosen: Sequence[tuple[str, Path]]) -> list[str | Path]:
    tasks = dict.fromkeys(task for task, _ in chosen)
    return [part for task in tasks if task in EIGHT for part in ("--data", SCRATCH / "made" / "data" / task)]


def prepare(settings: Sequence[str]) -> None:
    for setting in settings:
        python("-m", "benchmarks.made", f"eight-{setting}", SCRATCH / "made")
    if not (SCRATCH / "made" / "done").exists():
        # Its database is made once on a machine, and is no part of a run.
        bico("evaluate", "zoo:mini-b", "--task", "digits", "--test-limit", "8", home=SCRATCH / "made", prefect=PREFECT)
        write(SCRATCH / "made" / "done", "")


def transfer(chosen: Sequence[tuple[str, Path]], draw: int, out: Path, home: Path) -> Took:
    given = [part for task, file in chosen for part in ("--expert", f"{task}={file}")]
    asked = [*PAIR, *data_of(chosen), *given, "--seeds", str(draw), "--out", out, "--json"]
    return bico("transfer", *asked, home=home, prefect=PREFECT)


def carried(setting: str, draw: int, way: str) -> dict[str, Any]:
    """Carries all eight, one way; returns what it took."""
    folder = SCRATCH / f"{setting}-{draw}-{way.replace(', ', '-').replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    eight = experts_of(setting)
    if way == "one run":
        took = [transfer(eight, draw, folder / "results", folder / "home")]
    else:
        homes = [folder / ("home" if way == WAYS[1] else f"home-{n}") for n in range(8)]
        took = [transfer([expert], draw, folder / f"results-{n}", homes[n]) for n, expert in enumerate(eight)]
    stages = [one.json["stages"] for one in took]
    return {
        "seconds": sum(one.seconds for one in took),
        "cpu": sum(one.cpu for one in took),
        "memory": max(one.memory for one in took),
        "passes": sum(_passes(one) for one in took),
        "stages": sum(found["computed"] for found in stages),
        "calibrations": sum(found["by_stage"].get("collect-activations", {}).get("computed", 0) for found in stages),
        "maps": sum(found["by_stage"].get("procrustes", {}).get("computed", 0) for found in stages),
    }


def _passes(took: Took) -> int:
    """Samples that went through a model, as the run's plan counted them."""
    found = re.search(r"(\d+) passes of a sample", took.err)
    assert found, took.err[-500:]
    return int(found[1])


def merged(setting: str, draw: int, how: str) -> dict[str, Any]:
    """Puts together what one run has carried."""
    folder = SCRATCH / f"{setting}-{draw}-one-run"
    took = bico(
        "merge",
        folder / "results",
        *MERGES[how],
        "--out",
        folder / how,
        "--json",
        home=folder / "home",
        prefect=PREFECT,
    )
    return {"rows": took.json["rows"], "seconds": took.seconds, "cpu": took.cpu}


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was made before, or is made now."""
    path = SCRATCH / f"{name}.json"
    if not path.exists():
        write(path, json.dumps(make(), indent=1))
        print(f"{name}: done", flush=True)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def told(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def costs(setting: str, ways: dict[str, list[dict[str, Any]]]) -> str:
    kinds = {"seconds": "time (s)", "cpu": "CPU (s)", "passes": "passes of a sample", "calibrations": "calibrations"}
    kinds |= {"maps": "blocks of maps", "stages": "stages"}
    rows = [[way, *(told([one[kind] for one in draws], 0) for kind in kinds)] for way, draws in ways.items() if draws]
    return table([f"{setting}", *kinds.values()], rows)


def together(draws: Sequence[dict[str, dict[str, Any]]]) -> str:
    """By task: the target as it is, each expert alone, and the merges; then their means."""
    first = next(iter(draws[0].values()))["rows"]
    lines: list[list[str]] = []
    means: list[list[float]] = []
    for n, about in enumerate(first):
        columns = [[one[how]["rows"][n][kind] for one in draws] for how, kind in _columns()]
        means.append([statistics.mean(column) for column in columns])
        lines.append([about["task"], *(told(column) for column in columns)])
    # Means over tasks, draw by draw, so that their spread is that of draws.
    whole = [[statistics.mean(row[kind] for row in one[how]["rows"]) for one in draws] for how, kind in _columns()]
    lines.append(["mean", *(told(column) for column in whole)])
    return table(["task", "target as it is", "its expert alone", *(f"merged: {how}" for how in MERGES)], lines)


def _columns() -> list[tuple[str, str]]:
    any_of_them = next(iter(MERGES))
    return [(any_of_them, "before"), (any_of_them, "alone"), *((how, "merged") for how in MERGES)]


def main(draws: int, settings: Sequence[str], ways: Sequence[str]) -> None:
    prepare(settings)
    lines = ["# experts", ""]
    for setting in settings:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        joined = []
        for draw in range(draws):
            for way in ways:
                found[way].append(kept(f"{setting}-{draw} {way}", lambda: carried(setting, draw, way)))  # noqa: B023
            if "one run" in ways:
                joined.append(
                    {how: kept(f"{setting}-{draw} {how}", lambda: merged(setting, draw, how)) for how in MERGES}  # noqa: B023
                )
        lines += [f"## {setting}", "", costs(setting, found), ""]
        if joined:
            lines += [together(joined), ""]
    from bico.reporting.provenance import machine

    command = f"python -m benchmarks.experts --draws {draws} --settings {' '.join(settings)} --ways {' '.join(map(repr, ways))}"
    about = f"Made by `{command}`. Mean ± sd over {draws} calibration draws; accuracies in % of the test pictures."
    text = "\n".join([*lines[:2], about, f"Machine: {machine()}.", "", *lines[2:]])
    write(RESULTS, text.rstrip() + "\n")
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3, help="Calibration draws.")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    main(given.draws, given.settings, given.ways)
