"""Old runs in MLflow and Prefect, and records of finished ones: what they leave is freed with the store's artefacts."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.planning.disk import size_of
from flows.records import again
from flows.settings import Settings

OURS = (
    "cache-gc", "calibrate", "claims", "evaluate", "figure", "finetune", "merge", "pretrain", "release-watch", "reproduce",
    "reproduce-nightly", "solve-maps", "transfer", "transfer-packed",
)  # fmt: skip
"""The flows whose runs are counted; others may share the server."""


PATIENCE = 30.0
"""Seconds that a server gets to delete logs."""


@dataclass(frozen=True)
class Freed:
    """What went, or would go."""

    mlflow: int
    """Runs."""
    bytes: int
    """Of their files on this machine."""
    prefect: int
    """Flow runs."""
    finished: int
    """Records of finished runs whose artefacts are gone."""


def collect_records(settings: Settings, older_than: float, dry_run: bool) -> Freed:
    """Deletes runs that began more than so many seconds ago; that of a registered model stays."""
    from storage.runs import OldRun, delete_runs, old_runs
    from tasks.record import open_tracker

    runs: list[OldRun] = []
    freed = 0
    if settings.mlflow_uri is not None or (settings.home / "mlflow.db").exists():
        tracker = open_tracker(settings)
        runs = old_runs(tracker, time.time() - older_than)
        freed = sum(size_of(run.folder) for run in runs if run.folder is not None)
        if not dry_run:
            delete_runs(tracker, runs)
    flow_runs = _flow_runs(older_than, dry_run)
    swept = 0 if dry_run else again.sweep(settings.home, settings.store)
    return Freed(len(runs), freed, flow_runs, swept)


def _flow_runs(older_than: float, dry_run: bool) -> int:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterStartTime

    from flows.services.server import prefect_api

    before = datetime.fromtimestamp(time.time() - older_than, UTC)
    chosen: dict[str, Any] = {
        "flow_filter": FlowFilter(name=FlowFilterName(any_=list(OURS))),
        "flow_run_filter": FlowRunFilter(start_time=FlowRunFilterStartTime(before_=before)),
    }
    ended: set[Any] = set()
    with prefect_api(), get_client(sync_client=True) as client:
        offset = 0
        while found := client.read_flow_runs(**chosen, limit=200, offset=offset):
            done = [run.id for run in found if run.state is not None and run.state.is_final()]
            ended |= set(done)
            # What is deleted moves the others up.
            offset += len(found) if dry_run else len(found) - len(done)
            for run in () if dry_run else done:
                _delete(client, run)
        if not dry_run:
            _wait_for_logs(client, ended)
    return len(ended)


def _delete(client: Any, run: Any) -> None:
    """A flow run with its artifacts, which Prefect would keep."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    for artifact in client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    ):
        client.delete_artifact(artifact.id)
    client.delete_flow_run(run)


def _wait_for_logs(client: Any, runs: Collection[Any]) -> None:
    """Waits until the server has deleted the runs' logs, which it does by and by, and not after its end: one that was started
    for this command ends with it.
    """
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    theirs = LogFilter(flow_run_id=LogFilterFlowRunId(any_=list(runs)))
    until = time.monotonic() + PATIENCE
    while runs and time.monotonic() < until and client.read_logs(log_filter=theirs, limit=1):
        time.sleep(0.5)
