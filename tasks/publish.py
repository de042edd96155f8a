"""Write what a person looks at: tables, a plot, and the updated models."""

import csv
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
from prefect import task
from prefect.cache_policies import NO_CACHE

from bico.card import Origin, model_card
from bico.models.loading import CONFIG, WEIGHTS, ModelFiles
from bico.recommend import advice
from bico.report import Row, markdown_table, plot_accuracy
from bico.task_vector import add
from storage.checkpoints import load_state, save_state
from tasks.refit import READOUT
from tasks.retries import RETRIES
from tasks.stage import Done, Workspace, open_model
from tasks.transfer import VECTOR

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
    before = {row.task: row.accuracy for row in rows if row.method == "zero-shot"}
    for name, export in models.items():
        export_model(space, target, export.vector, export.alpha, folder := out / "models" / name)
        (folder / CARD).write_text(model_card(export.cell, before.get(export.cell.task), origin))
    return {
        "table": str(out / "results.csv"),
        "markdown": str(out / "results.md"),
        "plot": str(out / "accuracy.png"),
        "calibration": str(out / "calibration.json"),
        "models": {name: str(out / "models" / name) for name in models},
    }


def export_model(space: Workspace, target: ModelFiles, vector: Done, alpha: float, folder: Path) -> None:
    """Writes the updated target in open_clip's local-dir format, and the task vector beside it."""
    model = open_model(target, space.device).model
    update = load_state(vector.ref.path / VECTOR)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    for path in target.files:
        if path.name != CONFIG and path != target.weights:
            shutil.copyfile(path, folder / path.name)  # the tokenizer
    (folder / CONFIG).write_text(json.dumps(_configuration(target, model), indent=2))
    save_state(folder / WEIGHTS, add(state, update, alpha))
    shutil.copyfile(vector.ref.path / VECTOR, folder / VECTOR.replace("task_vector", "task-vector"))
    if (vector.ref.path / READOUT).exists():
        shutil.copyfile(vector.ref.path / READOUT, folder / READOUT)


def _configuration(target: ModelFiles, model: Any) -> dict[str, Any]:
    kept = next((path for path in target.files if path.name == CONFIG), None)
    if kept is not None:
        return json.loads(kept.read_text())
    return {
        "model_cfg": open_clip.get_model_config(target.name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
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
