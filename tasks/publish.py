"""Write what a person looks at: tables, a plot, the updated models, and the runs in MLflow."""

import csv
import json
import os
import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import open_clip
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from bico.models import t5_loading
from bico.models.files import T5
from bico.models.loading import CONFIG, WEIGHTS, ModelFiles
from bico.models.t5_loading import save_t5
from bico.report import Row, markdown_table, plot_accuracy, summarise
from bico.task_vector import add
from storage.checkpoints import load_state, save_state
from storage.tracking import Tracker
from tasks.stage import Done, Workspace, open_model
from tasks.transfer import VECTOR

CONFIGURATIONS = (CONFIG, t5_loading.CONFIG, "model.safetensors.index.json")
"""What is written anew with a model's weights."""


class Settings(Protocol):
    """Where runs are recorded."""

    home: Path
    mlflow_uri: str | None
    experiment: str


@task(name="write-results", task_run_name="write-results", cache_policy=NO_CACHE, persist_result=False)
def write_results(
    space: Workspace,
    out: Path,
    target: ModelFiles,
    rows: list[Row],
    calibrations: list[dict[str, Any]],
    models: dict[str, tuple[Done, float]],
) -> dict[str, Any]:
    """Writes the results table (CSV, Markdown), the plot, the calibration samples, and each chosen model with its task
    vector.

    Arguments:
        calibrations: Which samples were drawn, by task and seed (`Calibration.drawn`).
        models: By folder name, the task vector and how much of it is added.

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
        path.write_text(table + "\n")
    with _replacing(out / "accuracy.png") as path:
        plot_accuracy(rows).figure.savefig(path, dpi=150, format="png")
    with _replacing(out / "calibration.json") as path:
        path.write_text(json.dumps(calibrations))
    for name, (vector, alpha) in models.items():
        export_model(space, target, vector, alpha, out / "models" / name)
    create_markdown_artifact(table, key="results", description=f"Accuracy (%) on {target.ref}")
    return {
        "table": str(out / "results.csv"),
        "markdown": str(out / "results.md"),
        "plot": str(out / "accuracy.png"),
        "calibration": str(out / "calibration.json"),
        "models": {name: str(out / "models" / name) for name in models},
    }


def export_model(space: Workspace, target: ModelFiles, vector: Done, alpha: float, folder: Path) -> None:
    """Writes the updated target in the format of its family (open_clip's local-dir, or transformers'), and the task vector
    beside it.
    """
    opened = open_model(target, space.device)
    update = load_state(vector.ref.path / VECTOR)
    folder.mkdir(parents=True, exist_ok=True)
    for path in target.files:
        if path.name not in CONFIGURATIONS and path != target.weights and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)  # the tokenizer
    if target.family == T5:
        with opened.updated(update, alpha):
            save_t5(opened, folder)
    else:
        model = opened.model
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        (folder / CONFIG).write_text(json.dumps(_configuration(target, model), indent=2))
        save_state(folder / WEIGHTS, add(state, update, alpha))
    shutil.copyfile(vector.ref.path / VECTOR, folder / VECTOR.replace("task_vector", "task-vector"))


def _configuration(target: ModelFiles, model: Any) -> dict[str, Any]:
    kept = next((path for path in target.files if path.name == CONFIG), None)
    if kept is not None:
        return json.loads(kept.read_text())
    return {
        "model_cfg": open_clip.get_model_config(target.name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }


@task(name="record-run", task_run_name="record-run", cache_policy=NO_CACHE, persist_result=False)
def record_run(
    settings: Settings,
    name: str,
    params: dict[str, Any],
    rows: list[Row],
    outputs: dict[str, Any],
    tags: dict[str, Any],
) -> dict[str, Any]:
    """Writes one MLflow run for the transfer and, under it, one per task, method, sample count and seed."""
    tracker = Tracker(settings.mlflow_uri, settings.experiment, settings.home)
    about = {
        "versions": f"bico {version('bico')}, torch {version('torch')}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    parent = tracker.start_parent(name, params, tags | about)
    status = "FAILED"
    try:
        for row in rows:
            cell = {"task": row.task, "method": row.method, "samples": row.samples, "seed": row.seed}
            tracker.log_child(parent, row.label, params | cell, {"accuracy": row.accuracy}, {"method": row.method})
        for path in (outputs[kind] for kind in ("table", "markdown", "plot", "calibration")):
            tracker.log_artifact(parent, Path(path))
        tracker.describe(parent, markdown_table(rows))
        for line in summarise(rows):
            # MLflow's metric names have no equals sign, which settings of methods are written with.
            name = f"accuracy/{line.method.replace('=', ' ')}"
            tracker.log_metrics(parent, {name: line.average[0]}, step=line.samples)
        tracker.log_table(parent, [asdict(row) for row in rows], "results.json")
        status = "FINISHED"
    finally:
        tracker.finish(parent, status)
    return {"mlflow": {"uri": tracker.uri, "experiment": tracker.experiment_id, "run": parent}}


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
