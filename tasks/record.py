"""Record a transfer in MLflow: one run for all of it, one under it per cell, its files and its models."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from bico.methods.spec import Spec
from bico.reporting.advice import advice
from bico.reporting.merged import MergedRow, merged_table
from bico.reporting.references import TARGET_PROBE, is_reference, start_of, untouched
from bico.reporting.rows import Cell, Row, summarise
from bico.reporting.tables import markdown_table
from storage.runs import add_models, register_models
from storage.tracking import Tracker
from tasks.retries import RETRIES


class TrackingSettings(Protocol):
    """Where runs are recorded."""

    @property
    def home(self) -> Path: ...

    @property
    def mlflow_uri(self) -> str | None: ...

    @property
    def experiment(self) -> str: ...


CARD, CARDS = "README.md", "cards"
"""A model's card, and where a run keeps those of its models."""
RUN_DEFAULTS = ("completion", "alpha")
"""Parameters of a run that not every method takes, and that some take at another value: of a cell, what it took."""


def metric_label(method: Spec, unlabelled: int) -> str:
    """MLflow's metric names have neither the equals sign of settings nor the plus of last steps.

    Example:
        >>> metric_label(Spec.parse("bico+head:targets=labels"), 500)
        'bico with head:targets labels u500'
    """
    return str(method).replace("=", " ").replace("+", " with ") + f" u{unlabelled}" * bool(unlabelled)


def open_tracker(settings: TrackingSettings) -> Tracker:
    return Tracker(settings.mlflow_uri, settings.experiment, settings.home)


@task(name="record-run", task_run_name="record-run", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def record_run(
    settings: TrackingSettings,
    name: str,
    params: dict[str, Any],
    rows: list[Row],
    details: Mapping[Cell, Mapping[str, Any]],
    outputs: dict[str, Any],
    tags: dict[str, Any],
) -> dict[str, Any]:
    """Writes one MLflow run for the transfer and, under it, one per task, method, sample count and seed.

    Arguments:
        details: All settings of each cell's method, and those of `RUN_DEFAULTS` that it took.
        tags: With "prefect.flow_run", of which each has one run in MLflow: a retry goes on with it.
    """
    tracker = open_tracker(settings)
    about = {
        "bico.kind": "transfer",
        "versions": f"bico {version('bico')}, torch {version('torch')}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    base = untouched(rows)
    gained = f"over {base.label}"
    parent = tracker.start_parent(name, params, tags | about, once="prefect.flow_run")
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        for row in rows:
            cell = {name: value for name, value in row.record().items() if name != "accuracy"}
            metrics = {"accuracy": row.accuracy}
            if not is_reference(row.method) and (start := start_of(row, rows)) is not None:
                metrics[gained] = row.accuracy - start
            asked = {name: value for name, value in params.items() if name not in RUN_DEFAULTS}
            tracker.log_child(
                parent, row.label, asked | cell | dict(details[row.cell]), metrics, {"bico.kind": "cell"} | cell
            )
        for path in (outputs[kind] for kind in ("table", "markdown", "plot", "calibration", "page", "record")):
            tracker.log_artifact(parent, Path(path))
        for model, folder in outputs["models"].items():  # the weights are where they are; registered ones are copied
            tracker.log_artifact(parent, Path(folder) / CARD, f"{CARDS}/{model}")
        lies = [f"- {model}: `{folder}`" for model, folder in outputs["models"].items()]
        found = ["Models:", "\n".join(lies)] if lies else []
        tracker.describe(parent, "\n\n".join([markdown_table(rows), *advice(rows), *found]))
        summaries = summarise(rows)
        starts = {line.budget.asked: line.average[0] for line in summaries if line.method == base.spec}
        for line in summaries:
            label = metric_label(line.method, line.budget.unlabelled)
            metrics = {f"accuracy/{label}": line.average[0]}
            zero = starts.get(line.budget.asked if base is TARGET_PROBE else 0)
            if zero is not None and not is_reference(line.method):
                metrics[f"{gained}/{label}"] = line.average[0] - zero
            tracker.log_metrics(parent, metrics, step=line.budget.asked)
        tracker.log_table(parent, [row.record() for row in rows], "results.json")
        status = "FINISHED"
    finally:
        tracker.finish(parent, status)
    return {"mlflow": {"uri": tracker.uri, "experiment": tracker.experiment_id, "run": parent}}


@task(name="record-merge", task_run_name="record-merge", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def record_merge(
    settings: TrackingSettings,
    name: str,
    params: dict[str, Any],
    rows: Sequence[MergedRow],
    files: Sequence[Path],
    tags: dict[str, Any],
) -> dict[str, str]:
    """Writes one MLflow run for a model that was put together of several, and returns where it is.

    Arguments:
        files: What the run keeps: its table and record.
        tags: With "prefect.flow_run", of which each has one run in MLflow.
    """
    tracker = open_tracker(settings)
    about = {"bico.kind": "merge", "versions": f"bico {version('bico')}, torch {version('torch')}"}
    run = tracker.start_parent(name, params, tags | about, once="prefect.flow_run")
    tracker.describe(run, merged_table(rows))
    for one in rows:
        kinds = {"target": one.before, "alone": one.alone, "merged": one.merged}
        named = re.sub(r"[^\w. :/-]", " ", one.model)  # what MLflow lets stand in the name of a metric
        tracker.log_metrics(run, {f"accuracy/{named}/{kind}": value for kind, value in kinds.items()})
    for path in files:
        tracker.log_artifact(run, path)
    tracker.finish(run, "FINISHED")
    return {"uri": tracker.uri, "experiment": tracker.experiment_id, "run": run}


@task(
    name="register-models",
    task_run_name="register-models {name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def register(
    settings: TrackingSettings,
    run: str,
    name: str,
    alias: str | None = None,
    models: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Copies the models of an MLflow run there, registers them, and returns their versions, by registered name. What is
    registered is a copy: nobody who works on in the folder changes it.

    Arguments:
        models: Folders by name; those that the run has already stay as they are.

    Raises:
        StoreError: If a folder is not there any more, or there is no model at all.
    """
    tracker = open_tracker(settings)
    add_models(tracker, run, {model: Path(folder) for model, folder in (models or {}).items()})
    versions = register_models(tracker, run, name, alias)
    get_run_logger().info("Registered: %s", ", ".join(f"{model} version {v}" for model, v in versions.items()))
    return versions
