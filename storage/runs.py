"""Runs in MLflow, read back; and models that runs have logged, registered."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from bico.errors import StoreError
from storage.tracking import Tracker

RESULTS = "results.json"
MODELS = "models"
"""Where a run keeps the models that are registered, each in a folder."""


@dataclass(frozen=True)
class Recorded:
    """A transfer as MLflow remembers it."""

    name: str
    rows: list[dict[str, Any]]
    """By column, as `bico.reporting.report.Row` has them."""


RUN_ID = re.compile(r"[0-9a-f]{32}")


def find_run(tracker: Tracker, name: str) -> str:
    """Returns the id of the newest finished transfer of a name, or in whose name all its words occur.

    Raises:
        StoreError: If there is none; it says what the newest ones are called.
    """
    with tracker.talking() as client:
        where = "tags.`bico.kind` = 'transfer' and attributes.status = 'FINISHED'"
        runs = client.search_runs([tracker.experiment_id], where, order_by=["attributes.start_time DESC"])
    names = {run.info.run_id: run.info.run_name or "" for run in runs}
    exact = [key for key, found in names.items() if found == name]
    partly = [key for key, found in names.items() if all(word in found for word in name.split())]
    if not name.split() or not (exact or partly):
        there = "; ".join(list(dict.fromkeys(names.values()))[:3]) or "none"
        raise StoreError(f"MLflow at {tracker.uri} has no finished transfer called {name!r}. The newest: {there}.")
    return (exact or partly)[0]


@dataclass(frozen=True)
class OldRun:
    """A run that may go."""

    run: str
    name: str
    folder: Path | None
    """Its files, where they are on this machine."""


def old_runs(tracker: Tracker, before: float) -> list[OldRun]:
    """Runs of this program that began before a time (seconds since 1970), those that were deleted too; never one of whose
    models a version is registered.
    """
    found: list[OldRun] = []
    with tracker.talking() as client:
        kept = {version.run_id for version in client.search_model_versions()}
        page = None
        while page is None or page.token:
            page = client.search_runs(
                [tracker.experiment_id],
                f"attributes.start_time < {int(before * 1000)}",
                run_view_type=ViewType.ALL,
                page_token=page.token if page else None,
            )
            for run in page:
                parent = run.data.tags.get("mlflow.parentRunId", run.info.run_id)
                if "bico.kind" in run.data.tags and not {run.info.run_id, parent} & kept:
                    place = urlsplit(run.info.artifact_uri or "")
                    folder = Path(unquote(place.path)) if place.scheme == "file" else None
                    found.append(OldRun(run.info.run_id, run.info.run_name or "", folder))
    return found


def delete_runs(tracker: Tracker, runs: Iterable[OldRun]) -> None:
    """Deletes runs and their files: of a database on this machine for good, as `mlflow gc` does; a server keeps them as
    deleted until somebody runs that there.
    """
    with tracker.talking() as client:
        store = client._tracking_client.store
        for run in runs:
            client.delete_run(run.run)
            if run.folder is not None:
                shutil.rmtree(run.folder.parent if run.folder.name == "artifacts" else run.folder, ignore_errors=True)
            if hasattr(store, "_hard_delete_run"):
                store._hard_delete_run(run.run)


def read_run(tracker: Tracker, run: str) -> Recorded:
    """Reads the results of a transfer's run.

    Raises:
        StoreError: If there is no such run, or it has no results: it was none of a transfer, or did not finish.
    """
    with tracker.talking() as client, TemporaryDirectory() as folder:
        try:
            name = client.get_run(run).info.run_name or run
            path = client.download_artifacts(run, RESULTS, folder)
        except (MlflowException, OSError) as error:
            if getattr(error, "error_code", "RESOURCE_DOES_NOT_EXIST") != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise StoreError(
                f"MLflow at {tracker.uri} has no results of a run {run!r}: give the id of a finished transfer's parent "
                "run, as `bico transfer` prints it."
            ) from error
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    return Recorded(name, [dict(zip(table["columns"], values, strict=True)) for values in table["data"]])


def read_record(tracker: Tracker, run: str, name: str) -> str:
    """Reads a text that a run has left.

    Raises:
        StoreError: If there is no such run, or it has left none.
    """
    with tracker.talking() as client, TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run, name, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError) as error:
            if getattr(error, "error_code", "RESOURCE_DOES_NOT_EXIST") != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise StoreError(
                f"MLflow at {tracker.uri} has no {name} of a run {run!r}: give the id of a finished transfer's parent run, as "
                "`bico transfer` prints it; runs of earlier versions have none."
            ) from error


def add_models(tracker: Tracker, run: str, folders: Mapping[str, Path]) -> None:
    """Copies models to a run, for registering; one that it has already is left as it is.

    Raises:
        StoreError: If a folder is not there any more.
    """
    with tracker.talking() as client:
        known = {Path(entry.path).name for entry in client.list_artifacts(run, MODELS)}
    for name, folder in folders.items():
        if name in known:
            continue
        if not folder.is_dir():
            raise StoreError(
                f"The model {folder} is not there any more and cannot be registered: run the transfer again."
            )
        tracker.log_artifact(run, folder, f"{MODELS}/{name}")


def register_models(tracker: Tracker, run: str, name: str, alias: str | None = None) -> dict[str, str]:
    """Registers what a run has logged under `models`: a model NAME, or NAME-FOLDER each if there are several.

    Registering the same model of the same run again adds no version.

    Arguments:
        alias: Points at the new versions from now on, such as "published".

    Returns:
        Versions by registered name.

    Raises:
        StoreError: If the run has logged no model, or MLflow refuses.
    """
    versions = {}
    with tracker.talking() as client:
        folders = [entry.path for entry in client.list_artifacts(run, MODELS) if entry.is_dir]
        if not folders:
            raise StoreError("The run in MLflow has logged no model to register: was it made with `export: none`?")
        about = client.get_run(run)
        for path in folders:
            model = name if len(folders) == 1 else f"{name}-{Path(path).name}"
            source = f"{about.info.artifact_uri}/{path}"
            try:
                client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            known = [v for v in client.search_model_versions(f"name = '{model}'") if v.source == source]
            tags = {"target": about.data.params.get("target", ""), "source": about.data.params.get("source", "")}
            version = known[0] if known else client.create_model_version(model, source, run, tags=tags)
            if alias:
                client.set_registered_model_alias(model, alias, version.version)
            versions[model] = str(version.version)
    return versions
