"""Accuracy tables that are not in the paper: how much of a skill arrives on the zoo.

    python -m benchmarks.tables embedded                     mini-a to mini-b on the embedded tasks
    python -m benchmarks.tables shapes                       wider, narrower, deeper, shallower
    python -m benchmarks.tables real --data DIR --data DIR   mini-a to mini-b on data sets in folders
    python -m benchmarks.tables completion                   both ways to complete a map
    python -m benchmarks.tables rates --data DIR ...         few-shot fine-tuning of table C at several learning rates
    python -m benchmarks.tables losses --data DIR ...        both losses of a text model, t5-mini-a to t5-mini-b

The paper's own are `bico reproduce`, which does the work here too. Each writes benchmarks/results/NAME.md and NAME.csv.
Artefacts are kept in .bico, so an interrupted table goes on where it stopped.
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Importing the command line sets the environment (telemetry, logging) that every run gets.
import flows.cli  # noqa: F401  # isort: skip
from flows.commands.console import log_to_stderr  # isort: skip
from bico.calibration.budget import Budget
from bico.methods.spec import Spec
from bico.models.t5.encoder import T5Encoder
from bico.reporting.claims import Kind, differences, evaluate
from bico.reporting.names import label_of
from bico.reporting.references import SOURCE_PROBE, TARGET_PROBE
from bico.reporting.rows import Row
from flows.recipes import Recipe, read_recipe
from flows.reproduce import check, reproduce
from flows.services.server import prefect_api
from flows.settings import Settings

RESULTS = Path(__file__).parent / "results"
EMBEDDED = ["digits", "segments", "lamps"]
TAKE_DATA = ("real", "rates", "losses")
NEED_DATA = ("real", "losses")
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
SHAPES = [("mini-a", "mini-b-plus"), ("mini-b-plus", "mini-a"), ("mini-a", "mini-l"), ("mini-l", "mini-a")]


def table(name: str, tasks: list[str]) -> Recipe:
    """One table as a recipe. Results go by the recipe's id, so each is a `real` side of its own."""
    pair: dict[str, Any] = {"source": "zoo:mini-a", "target": "zoo:mini-b", "tasks": tasks}
    sweep: dict[str, Any] = {"methods": ["bico", "theseus", "naive"], "samples": [10, 20, 50, 100]}
    match name:
        case "embedded" | "real":
            parts = {"shared": sweep, "transfers": {"pair": {}}}
        case "shapes":
            shapes = {f"{a} to {b}": {"source": f"zoo:{a}", "target": f"zoo:{b}"} for a, b in SHAPES}
            shared = {"methods": ["bico", "theseus"], "samples": [100], "oracle": False}
            parts = {"shared": shared, "transfers": shapes}
        case "completion":
            shared = sweep | {"methods": ["bico", "theseus"]}
            parts = {"shared": shared, "transfers": {kind: {"completion": kind} for kind in ("partial", "svd")}}
        case "rates":
            methods = ["bico", *(f"few-shot:lr={rate:g}" for rate in RATES)]
            shared = {"methods": methods, "samples": [5], "sampling": "per-class", "test_limit": 500}
            parts = {"shared": shared, "transfers": {"pair": {}}}
            pair["target"] = "zoo:mini-b-plus"
        case "losses":  # as table 2, with which it shares its stages
            mini = read_recipe("table2")
            pair = mini.mini | {"tasks": tasks}
            parts = {"shared": mini.shared, "transfers": {loss: {"loss": loss} for loss in T5Encoder.losses}}
            parts["shows"] = mini.shows
        case _:
            raise ValueError(name)
    return Recipe(id=name, title="the zoo", real=pair, **parts)


def verdicts(rows: Mapping[str, Sequence[Row]], counts: Sequence[int]) -> str:
    """Which loss is better, and with which of them BiCo is above what: a section for losses.md."""
    (first, other), bico = T5Encoder.losses, Spec.parse("bico")
    lines = [
        "## Verdicts",
        "",
        "Points, averaged over seeds and tested over tasks as `bico claims` does. Whatever is chosen by them was chosen on "
        "these test texts, which flatters it a little on them.",
        "",
        "| claim | N | mean | sd over tasks | in favour | p | verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    pairs = [(f"BiCo: {first} above {other}", (first, bico), (other, bico))]
    pairs += [
        (f"{loss}: BiCo above {label_of(baseline)}", (loss, bico), (loss, baseline))
        for loss, baseline in itertools.product(rows, (Spec.parse("theseus"), TARGET_PROBE.spec, SOURCE_PROBE.spec))
    ]
    for title, *sides in pairs:
        for n in counts:
            found = (
                [row for row in rows[loss] if (row.method, row.budget) == (method, Budget(n))] for loss, method in sides
            )
            o = evaluate(differences(*found), Kind.MORE)
            lines.append(
                f"| {title} | {n} | {o.mean:+.2f} | {o.sd:.2f} | {o.in_favour}/{o.tasks} | {o.p:.3f} | {o.verdict} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["embedded", "real", "shapes", "completion", "rates", "losses"])
    parser.add_argument("--data", action="append", type=Path, default=[], help="task folder with both splits")
    arguments = parser.parse_args()
    if (arguments.table in NEED_DATA) > bool(arguments.data) or (arguments.data and arguments.table not in TAKE_DATA):
        parser.error(f"--data goes with {', '.join(TAKE_DATA)}; {' and '.join(NEED_DATA)} need it")
    names = [folder.resolve().name for folder in arguments.data]
    tasks = {"real": names, "losses": names, "shapes": EMBEDDED[:1], "rates": EMBEDDED + names}.get(
        arguments.table, EMBEDDED
    )
    command = " ".join(["python -m benchmarks.tables", arguments.table, *(f"--data DATA/{name}" for name in names)])
    log_to_stderr()
    recipe, settings = table(arguments.table, tasks), Settings.from_environment()
    check(recipe, False, arguments.data, settings)
    with prefect_api():
        done = reproduce(recipe, False, arguments.data, settings, RESULTS, command, sys.stderr.isatty())
    print(done.text)
    if arguments.table == "losses":
        found = verdicts(done.rows, recipe.shared["samples"])
        path = RESULTS / "losses.md"
        path.write_text(f"{path.read_text().rstrip()}\n\n{found}\n")
        print(f"\n{found}")


if __name__ == "__main__":
    main()
