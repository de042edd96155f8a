"""What `bico plan` says, against what then happens: five runs of different kind.

    python -m benchmarks.plans --models DIR      # DIR holds all-MiniLM-L6-v2 and paraphrase-MiniLM-L3-v2
    python -m benchmarks.plans vision own        # some of them; those done before are told again (--anew: run again)

Each run is planned with an empty store, then made, by the command line and in processes of its own. Time is elapsed, from the
command to its end, and is planned again after the run, which the estimate has learnt from; memory is the peak of its largest process; the store is what the run has left there, results are its output
folder and MLflow's copy. Times mean something on a machine that does nothing else. Writes benchmarks/results/plans.md, and
each run as it comes to out/plans.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.commands import ROOT, bico, python, write
from flows.planning.disk import size_of

RESULTS = Path(__file__).parent / "results" / "plans.md"
SCRATCH = ROOT / "out" / "plans"
GOAL = 1.5
QUANTITIES = {"time (s)": 1.0, "memory (MB)": 1e-6, "store (MB)": 1e-6, "results (MB)": 1e-6}


@dataclass(frozen=True)
class Case:
    """A run of one kind."""

    about: str
    make: Callable[[Path, Path | None], list[str | Path]]
    """From a scratch folder and the folder of models: prepares, and returns the command's arguments."""
    wants_models: bool = False


def vision(folder: Path, models: Path | None) -> list[str | Path]:
    pair = ["transfer", "--source", "zoo:mini-a", "--target", "zoo:mini-b", "--tasks", "digits,segments,lamps"]
    return [*pair, "--methods", "bico,theseus,naive", "--samples", "20,100", "--seeds", "0,1", "--rivals", "none"]


def language(folder: Path, models: Path | None) -> list[str | Path]:
    python("-m", "benchmarks.made", "texts", folder / "mail")
    pair = ["transfer", "--source", "zoo:t5-mini-a", "--target", "zoo:t5-mini-b", "--data", folder / "mail"]
    return [*pair, "--methods", "bico", "--samples", "100", "--seeds", "0", "--rivals", "cheap"]


def encoders(folder: Path, models: Path | None) -> list[str | Path]:
    assert models is not None
    python("-m", "benchmarks.made", "texts", folder / "mail")
    source, target = (models.absolute() / name for name in ("all-MiniLM-L6-v2", "paraphrase-MiniLM-L3-v2"))
    expert, short = folder / "expert.safetensors", ["--steps", "10", "--warmup", "2", "--batch-size", "16"]
    bico(
        "finetune", source, "--task", "mail", "--data", folder / "mail", "--out", expert, *short, home=SCRATCH / "made"
    )
    pair = ["transfer", "--source", source, "--target", target, "--data", folder / "mail", "--expert", expert]
    return [*pair, "--methods", "bico", "--samples", "50", "--seeds", "0"]


def adapter(folder: Path, models: Path | None) -> list[str | Path]:
    python("-m", "benchmarks.made", "decoders", folder / "models")
    place = folder / "models"
    return ["rehome", place / "lora", "--from", place / "old", "--to", place / "new", "--data", place / "texts.jsonl"]


def own(folder: Path, models: Path | None) -> list[str | Path]:
    python("-m", "benchmarks.made", "pictures", folder / "marks")
    expert = folder / "expert.safetensors"
    short = ["--steps", "60", "--warmup", "6"]
    made = ["zoo:mini-a", "--task", "marks", "--data", folder / "marks", "--out", expert]
    bico("finetune", *made, *short, home=SCRATCH / "made")
    pair = ["transfer", "--source", "zoo:mini-a", "--target", "zoo:mini-b", "--data", folder / "marks"]
    return [*pair, "--expert", expert, "--quick"]


CASES = {
    "vision": Case("image towers, three tasks, fine-tuned in the run, three methods, N=20,100, two draws", vision),
    "language": Case("T5 encoders, fine-tuned in the run, N=100, rivals in closed form", language),
    "encoders": Case("MiniLM-L6 to MiniLM-L3 with an expert's file, N=50", encoders, wants_models=True),
    "adapter": Case("`bico rehome` of a LoRA adapter between small decoders, N=64", adapter),
    "own": Case("`--quick` with an expert and an ImageFolder of one's own", own),
}


def run(name: str, models: Path | None) -> dict[str, Any]:
    """Plans and makes one run; returns what was said and what happened."""
    folder = SCRATCH / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments, home, out = CASES[name].make(folder, models), SCRATCH / f"home-{name}", folder / "results"
    asked = ["--out", out, "--json"]
    shutil.rmtree(home, ignore_errors=True)
    planned = bico(*arguments, *asked, "--dry-run", home=home)
    said = planned.json
    before = size_of(home / "store")
    done = bico(*arguments, *asked, home=home)
    # The same with an empty store, now that it is known what a run takes here beside its estimate.
    again = bico(*arguments, *asked, "--dry-run", "--store", folder / "empty", home=home).json
    return {
        "plan": {
            "time (s)": said["seconds"],
            "memory (MB)": said["memory"],
            "store (MB)": said["disk"]["store"],
            "results (MB)": said["disk"]["results"],
        },
        "happened": {
            "time (s)": done.seconds,
            "memory (MB)": done.memory,
            "store (MB)": size_of(home / "store") - before,
            "results (MB)": size_of(out) + size_of(home / "mlflow-artifacts"),
        },
        "time (s), planned again": again["seconds"],
        "cpu": done.cpu,
        "planning": planned.seconds,
        "stages": {
            stage: {"computed": about["computed"], "seconds": about["seconds"]}
            for stage, about in said["stages"]["by_stage"].items()
        },
        "phases": json.loads((out / "run.json").read_text(encoding="utf-8"))["phases"],
        "stages agree": said["stages"]["computed"] == done.json["stages"]["computed"],
        "load": os.getloadavg()[0],
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Planned, happened, and the ratio of the larger to the smaller, of each run."""
    rows = []
    for name, one in found.items():
        for quantity, unit in QUANTITIES.items():
            said, was = one["plan"][quantity] * unit, one["happened"][quantity] * unit
            ratio = was / said
            held = "yes" if 1 / GOAL <= ratio <= GOAL else "NO"
            rows.append([name, quantity, f"{said:.1f}", f"{was:.1f}", f"{ratio:.2f}", held])
        said, was = one["time (s), planned again"], one["happened"]["time (s)"]
        rows.append([name, "time (s), planned again", f"{said:.1f}", f"{was:.1f}", f"{was / said:.2f}", ""])
    return measure.table(["run", "quantity", "plan", "happened", "happened / plan", f"within {GOAL}"], rows)


def report(found: dict[str, dict[str, Any]], command: str) -> str:
    from bico.reporting.provenance import machine

    loads = ", ".join(f"{name} {one['load']:.1f}" for name, one in found.items())
    cpu = ", ".join(f"{name} {one['cpu']:.0f}" for name, one in found.items())
    lines = [
        "# plans",
        "",
        f"Made by `{command}`; runs of {', '.join(sorted({one['made'] for one in found.values()}))}.",
        f"Machine: {machine()}. Load at the end of each run: {loads} (times want an idle machine). CPU seconds: {cpu}.",
        "",
        *(f"- {name}: {CASES[name].about}" for name in found),
        "",
        table(found),
    ]
    return "\n".join(lines)


def main(names: Sequence[str], models: Path | None, anew: bool) -> None:
    found: dict[str, dict[str, Any]] = {}
    if anew or not all((SCRATCH / f"{name}.json").exists() for name in names):
        # Prefect's database is made on the first use of a machine, and libraries are read from a cold disk.
        bico("evaluate", "zoo:mini-b", "--task", "digits", "--test-limit", "8", home=SCRATCH / "made")
    for name in names:
        kept = SCRATCH / f"{name}.json"
        if anew or not kept.exists():
            write(kept, json.dumps(run(name, models), indent=1))
        found[name] = json.loads(kept.read_text(encoding="utf-8"))
        print(table({name: found[name]}), flush=True)
    command = " ".join(["python -m benchmarks.plans", *names, *(["--models DIR"] if models else [])])
    text = report(found, command)
    write(RESULTS, text + "\n")
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], help="Which runs; all by default.")
    parser.add_argument("--models", type=Path, help="Folder with the sentence encoders of `encoders`.")
    parser.add_argument("--anew", action="store_true", help="Also those that were run before.")
    given = parser.parse_args()
    asked = given.names or [name for name, case in CASES.items() if given.models or not case.wants_models]
    main(asked, given.models, given.anew)
