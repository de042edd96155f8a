"""Old runs in MLflow and Prefect, and records of finished ones: what they leave is freed with the store's artefacts."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows.planning.disk import size_of
from flows.records import again
from flows.settings import Settings

OURS = (
    "cache-gc", "claims", "evaluate", "figure", "finetune", "release-watch", "reproduce", "solve-maps", "transfer",
)  # fmt: skip
"""The flows whose runs are counted; others may share the server."""


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
                client.delete_flow_run(run)
    return len(ended)
