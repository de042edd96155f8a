"""Write what a person looks at: tables, a plot, and the updated models."""

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from bico.methods.variant import Variant
from bico.models.loading import ModelFiles
from bico.reporting.advice import advice
from bico.reporting.card import Origin, model_card
from bico.reporting.plots import plot_accuracy
from bico.reporting.references import start_of
from bico.reporting.rows import COLUMNS, Cell, Row
from bico.reporting.strengths import plot_strengths, strength_lines
from bico.reporting.tables import markdown_table
from storage.keys import Ref
from tasks.artefacts import read_curve
from tasks.cached_stage import Workspace
from tasks.export import export_model
from tasks.inputs import TaskRef
from tasks.retries import RETRIES

CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """A model to write."""

    vector: Ref
    """The target's task vector."""
    row: Row
    """Its row of the results."""
    task: TaskRef
    variant: Variant
    """What was done to the target."""
    alpha: float = 1.0
    """How much of the task vector is added."""


@task(name="write-results", task_run_name="write-results", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def write_results(
    space: Workspace,
    out: Path,
    target: ModelFiles,
    rows: list[Row],
    calibrations: list[dict[str, Any]],
    models: Mapping[str, Export],
    origin: Origin,
    searched: Mapping[Cell, Ref],
) -> dict[str, Any]:
    """Writes the results table (CSV, Markdown), the plot, the calibration samples, and each chosen model with its task
    vector and a card; where strengths were searched, a plot of what the searches saw.

    Arguments:
        calibrations: Which samples were drawn, by task and seed (`Calibration.drawn`).
        models: By folder name.
        origin: What the models were made of, and how much of each task vector is added.
        searched: Task vectors whose strength may have been searched.

    Returns:
        What was written, by kind.
    """
    out = out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(rows)
    curves = {cell: curve for cell, ref in searched.items() if (curve := read_curve(ref))}
    found = "\n".join(["Strengths found (`strengths.png`):", *strength_lines(curves)]) if curves else ""
    with _replacing(out / "results.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(row.record() for row in rows)
    with _replacing(out / "results.md") as path:
        heading = [] if origin.measure == "accuracy" else [f"Test {origin.measure}, in percent."]
        parts = [*heading, table, *advice(rows), *([found] if found else [])]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    with _replacing(out / "accuracy.png") as path:
        axes = plot_accuracy(rows)
        axes.set_ylabel(f"test {origin.measure} (%)")
        axes.figure.savefig(path, dpi=150, format="png")
    if curves:
        with _replacing(out / "strengths.png") as path:
            plot_strengths(curves).figure.savefig(path, dpi=150, format="png")
    with _replacing(out / "calibration.json") as path:
        path.write_text(json.dumps(calibrations))
    for name, export in models.items():
        folder = out / "models" / name
        loaded_by = export_model(space, target, export.vector, export.alpha, folder, export.task)
        card = model_card(
            export.row, export.variant, start_of(export.row, rows), origin, name, read_curve(export.vector), loaded_by
        )
        (folder / CARD).write_text(card, encoding="utf-8")
    return {
        "table": str(out / "results.csv"),
        "markdown": str(out / "results.md"),
        "plot": str(out / "accuracy.png"),
        "calibration": str(out / "calibration.json"),
        **({"strengths": str(out / "strengths.png")} if curves else {}),
        "models": {name: str(out / "models" / name) for name in models},
    }


class _replacing:  # noqa: N801 - it reads as a verb
    """Gives a temporary path beside the real one and moves it there when all went well."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)
