"""Record a transfer in MLflow: one run for all of it, one under it per cell, its files and its models."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from bico.reporting.advice import advice
from bico.reporting.report import REFERENCES, Row, base_of, markdown_table, method_label, start_of, summarise
from storage.runs import MODELS, register_models
from storage.tracking import Tracker
from tasks.retries import RETRIES


class TrackingSettings(Protocol):
    """Where runs are recorded."""

    home: Path
    mlflow_uri: str | None
    experiment: str


def metric_label(method: str, unlabelled: int) -> str:
    """MLflow's metric names have neither the equals sign of settings nor the plus of last steps.

    Example:
        >>> metric_label("bico+head:targets=labels", 500)
        'bico with head:targets labels u500'
    """
    return method.replace("=", " ").replace("+", " with ") + f" u{unlabelled}" * bool(unlabelled)


def open_tracker(settings: TrackingSettings) -> Tracker:
    return Tracker(settings.mlflow_uri, settings.experiment, settings.home)


@task(name="record-run", task_run_name="record-run", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def record_run(
    settings: TrackingSettings,
    name: str,
    params: dict[str, Any],
    rows: list[Row],
    outputs: dict[str, Any],
    tags: dict[str, Any],
) -> dict[str, Any]:
    """Writes one MLflow run for the transfer and, under it, one per task, method, sample count and seed.

    Arguments:
        tags: With "prefect.flow_run", of which each has one run in MLflow: a retry goes on with it.
    """
    tracker = open_tracker(settings)
    about = {
        "bico.kind": "transfer",
        "versions": f"bico {version('bico')}, torch {version('torch')}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    base = base_of(rows)
    gained = f"over {method_label(base)}"
    parent = tracker.start_parent(name, params, tags | about, once="prefect.flow_run")
    status = "FAILED"
    try:
        for row in rows:
            cell = {
                "task": row.task,
                "method": row.method,
                "samples": row.samples,
                "unlabelled": row.unlabelled,
                "seed": row.seed,
            }
            metrics = {"accuracy": row.accuracy}
            if row.method not in REFERENCES and (start := start_of(row, rows)) is not None:
                metrics[gained] = row.accuracy - start
            tracker.log_child(parent, row.label, params | cell, metrics, {"bico.kind": "cell"} | cell)
        for path in (outputs[kind] for kind in ("table", "markdown", "plot", "calibration")):
            tracker.log_artifact(parent, Path(path))
        for model, folder in outputs["models"].items():
            tracker.log_artifact(parent, Path(folder), f"{MODELS}/{model}")
        tracker.describe(parent, "\n\n".join([markdown_table(rows), *advice(rows)]))
        summaries = summarise(rows)
        starts = {line.samples: line.average[0] for line in summaries if line.method == base}
        for line in summaries:
            label = metric_label(line.method, line.unlabelled)
            metrics = {f"accuracy/{label}": line.average[0]}
            zero = starts.get(0 if base == "zero-shot" else line.samples)
            if zero is not None and line.method not in REFERENCES:
                metrics[f"{gained}/{label}"] = line.average[0] - zero
            tracker.log_metrics(parent, metrics, step=line.samples)
        tracker.log_table(parent, [asdict(row) for row in rows], "results.json")
        status = "FINISHED"
    finally:
        tracker.finish(parent, status)
    return {"mlflow": {"uri": tracker.uri, "experiment": tracker.experiment_id, "run": parent}}


@task(
    name="register-models",
    task_run_name="register-models {name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def register(settings: TrackingSettings, run: str, name: str, alias: str | None = None) -> dict[str, str]:
    """Registers the models of an MLflow run and returns their versions, by registered name."""
    versions = register_models(open_tracker(settings), run, name, alias)
    get_run_logger().info("Registered: %s", ", ".join(f"{model} version {v}" for model, v in versions.items()))
    return versions
