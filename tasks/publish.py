"""Write what a person looks at: tables, a plot, and the updated models."""

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from bico.models.loading import ModelFiles
from bico.reporting.advice import advice
from bico.reporting.card import Origin, model_card
from bico.reporting.report import Row, markdown_table, plot_accuracy, start_of
from tasks.cached_stage import Done, Workspace
from tasks.export import export_model
from tasks.retries import RETRIES

CARD = "README.md"


@dataclass(frozen=True)
class Export:
    """A model to write."""

    vector: Done
    """The target's task vector."""
    cell: Row
    """Its row of the results."""
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
) -> dict[str, Any]:
    """Writes the results table (CSV, Markdown), the plot, the calibration samples, and each chosen model with its task
    vector and a card.

    Arguments:
        calibrations: Which samples were drawn, by task and seed (`Calibration.drawn`).
        models: By folder name.
        origin: What the models were made of, and how much of each task vector is added.

    Returns:
        What was written, by kind.
    """
    out = out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(rows)
    with _replacing(out / "results.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    with _replacing(out / "results.md") as path:
        path.write_text("\n\n".join([table, *advice(rows)]) + "\n")
    with _replacing(out / "accuracy.png") as path:
        plot_accuracy(rows).figure.savefig(path, dpi=150, format="png")
    with _replacing(out / "calibration.json") as path:
        path.write_text(json.dumps(calibrations))
    for name, export in models.items():
        export_model(space, target, export.vector, export.alpha, folder := out / "models" / name)
        (folder / CARD).write_text(model_card(export.cell, start_of(export.cell, rows), origin))
    return {
        "table": str(out / "results.csv"),
        "markdown": str(out / "results.md"),
        "plot": str(out / "accuracy.png"),
        "calibration": str(out / "calibration.json"),
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
