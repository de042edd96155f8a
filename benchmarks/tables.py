"""Accuracy tables on the zoo: how much of a skill arrives.

    python -m benchmarks.tables embedded                     mini-a to mini-b on the embedded tasks
    python -m benchmarks.tables shapes                       wider, narrower, deeper, shallower
    python -m benchmarks.tables real --data DIR --data DIR   mini-a to mini-b on data sets in parquet folders
    python -m benchmarks.tables completion                   both ways to complete a map

Each writes benchmarks/results/NAME.md and NAME.csv, with the command, the machine and the versions, and prints the
table. Artefacts are kept in .bico, so an interrupted table goes on where it stopped.
"""

import argparse
import csv
import os
import platform
import sys
import time
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

# Importing the command line sets the environment (telemetry, logging) that every run gets.
from flows.cli import log_to_stderr  # isort: skip
from bico.report import Row, markdown_table, summarise
from flows.config import Settings, TransferConfig
from flows.server import prefect_api
from flows.transfer import transfer

RESULTS = Path(__file__).parent / "results"
EMBEDDED = ["digits", "segments", "lamps"]
SHAPES = [("mini-a", "mini-b-plus"), ("mini-b-plus", "mini-a"), ("mini-a", "mini-l"), ("mini-l", "mini-a")]


def configurations(name: str, data: list[Path]) -> dict[str, TransferConfig]:
    """The transfers of one table, by title."""
    shared = {"out": Path("out/benchmarks") / name, "export": "none"}
    a_b = {"source": "zoo:mini-a", "target": "zoo:mini-b"} | shared
    match name:
        case "embedded":
            return {"mini-a → mini-b": TransferConfig(**a_b, tasks=EMBEDDED)}
        case "real":
            tasks = [folder.resolve().name for folder in data]
            return {"mini-a → mini-b": TransferConfig(**a_b, tasks=tasks, data=data)}
        case "shapes":
            return {
                f"{source} → {target}": TransferConfig(
                    source=f"zoo:{source}",
                    target=f"zoo:{target}",
                    tasks=EMBEDDED[:1],
                    methods=["bico", "theseus"],
                    samples=[100],
                    oracle=False,
                    **shared,
                )
                for source, target in SHAPES
            }
        case "completion":
            return {
                f"mini-a → mini-b, completion {kind}": TransferConfig(
                    **a_b, tasks=EMBEDDED, methods=["bico", "theseus"], samples=[10, 20, 50, 100], completion=kind
                )
                for kind in ("partial", "svd")
            }
    raise ValueError(name)


def machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ", ".join(
        f"{package} {version(package)}" for package in ("torch", "open_clip_torch", "prefect", "dask", "zarr")
    )
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def verdicts(rows: list[Row]) -> list[str]:
    """Differences at the largest N, averaged over tasks, each computed per calibration seed: mean ± sd."""
    summaries = {(s.method, s.samples): s for s in summarise(rows)}
    largest = max(samples for _, samples in summaries)
    bico, zero = summaries["bico", largest], summaries["zero-shot", 0]
    lines = [
        f"- N={largest}: BiCo − zero-shot = {bico.average[0] - zero.average[0]:+.1f} ± {bico.average[1]:.1f} points"
    ]
    if ("theseus", largest) in summaries:
        theseus = summaries["theseus", largest]
        lines.append(f"- N={largest}: BiCo − THESEUS = {bico.average[0] - theseus.average[0]:+.1f} points")
    if ("naive", 0) in summaries:
        lines.append(f"- naive − zero-shot = {summaries['naive', 0].average[0] - zero.average[0]:+.1f} points")
    if ("fine-tuned", 0) in summaries:
        tuned = summaries["fine-tuned", 0].average[0]
        share = 100 * (bico.average[0] - zero.average[0]) / (tuned - zero.average[0])
        lines.append(f"- N={largest}: {share:.0f} % of the gap to the fine-tuned target is closed")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["embedded", "real", "shapes", "completion"])
    parser.add_argument(
        "--data", action="append", type=Path, default=[], help="task folder with train.parquet and test.parquet"
    )
    arguments = parser.parse_args()
    if (arguments.table == "real") != bool(arguments.data):
        parser.error("the table `real` takes --data, and only that one")
    log_to_stderr()
    started, parts, everything = time.perf_counter(), [], []
    settings = Settings.from_environment()
    with prefect_api():
        for title, config in configurations(arguments.table, arguments.data).items():
            rows = transfer(config, settings, sys.stderr.isatty()).rows
            parts += [f"## {title}", "", markdown_table(rows), "", *verdicts(rows), ""]
            everything += [{"pair": title, **asdict(row)} for row in rows]
    names = [folder.resolve().name for folder in arguments.data]
    command = " ".join(["python -m benchmarks.tables", arguments.table, *(f"--data DATA/{name}" for name in names)])
    about = [
        f"Made by `{command}` on {date.today()} in {time.perf_counter() - started:.0f} s (finished stages cached).",
        f"Machine: {machine()}.",
        "Accuracy in %, mean ± sd over the calibration seeds 0, 1, 2; sd of the average over tasks.",
    ]
    text = "\n".join([f"# {arguments.table}", "", *about, "", *parts])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.table}.md").write_text(text)
    with (RESULTS / f"{arguments.table}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(everything[0]))
        writer.writeheader()
        writer.writerows(everything)
    print(text)


if __name__ == "__main__":
    main()
