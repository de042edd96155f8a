"""What an operator does: deploy, start a worker, trigger, answer. Commands are those of docs/operations.md."""

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.flow_runs import resume_flow_run

from tests.rehearsal.stage import Stage

POOL = "local-process"
LONG = 900
"""Seconds for what takes one or two where nothing else runs."""
SCHEDULED = ("reproduce-nightly", "release-watch", "cache-gc")
TRANSFER = {
    "source": "zoo:mini-a",
    "tasks": ["digits"],
    "methods": ["bico", "theseus"],
    "samples": [20, 100],
    "seeds": [0],
    "oracle": False,
}
"""One task, two sample counts, one seed."""


def deploy(stage: Stage) -> None:
    stage.run("prefect", "work-pool", "create", POOL, "--type", "process")
    stage.run("prefect", "concurrency-limit", "create", "gpu", "1")
    stage.run("prefect", "--no-prompt", "deploy", "--all")
    stage.start("worker", "prefect", "worker", "start", "--pool", POOL, cwd=stage.root)
    stage.say("Pool, concurrency limit and four deployments are made; a worker has started")


def runs_of(deployment: str) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[deployment])), limit=200
        )


def check_schedules(stage: Stage) -> None:
    """Every cron deployment has runs to come; they are then paused, so that none begins in the middle of this."""
    for name in SCHEDULED:
        seconds = stage.await_(f"scheduled runs of {name}", lambda name=name: bool(runs_of(name)), LONG)
        coming = sorted(run.expected_start_time for run in runs_of(name) if run.state.is_scheduled())
        stage.say(f"{name}: {len(coming)} runs are scheduled, the first for {coming[0]:%A %H:%M} ({seconds:.0f} s)")
    for name in SCHEDULED:
        _pause(name)


def _pause(deployment: str) -> None:
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(f"{deployment}/{deployment}")
        for schedule in found.schedules:
            client.update_deployment_schedule(found.id, schedule.id, active=False)


def trigger(stage: Stage, deployment: str, **parameters: Any) -> str:
    """Triggers a run by the documented command and returns its id."""
    given = [part for name, value in parameters.items() for part in ("--param", f"{name}={json.dumps(value)}")]
    printed = stage.run("prefect", "deployment", "run", f"{deployment}/{deployment}", *given)
    (found,) = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", printed))
    return found


def read(run: str) -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run)


def settle(stage: Stage, run: str, arrived: Callable[[FlowRun], bool], what: str, limit: float = LONG) -> FlowRun:
    """Waits for a flow run; one that fails meanwhile ends the rehearsal with its log."""
    seen: list[FlowRun] = []

    def look() -> bool:
        with suppress(httpx.HTTPError):
            seen.append(read(run))
        state = seen[-1].state if seen else None
        if state is not None and not arrived(seen[-1]) and (state.is_failed() or state.is_crashed()):
            raise AssertionError(
                f"{what} ended as {state.name}: {state.message}; {stage.log('worker').read_text()[-3000:]}"
            )
        return bool(seen) and arrived(seen[-1])

    stage.await_(what, look, limit)
    return seen[-1]


def finish(stage: Stage, run: str, what: str, limit: float = LONG) -> FlowRun:
    return settle(stage, run, lambda found: found.state.is_final(), what, limit)


def artifacts(run: str) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
        return {found.key: found.data for found in client.read_artifacts(artifact_filter=chosen, limit=100)}


def transfers(stage: Stage, targets: dict[str, str]) -> dict[str, str]:
    """Triggers one transfer per target and waits for each."""
    runs = {}
    for name, target in targets.items():
        started = time.monotonic()
        config = TRANSFER | {"target": target, "out": f"out/transfer/{name}"}
        runs[name] = run = trigger(stage, "transfer", config=config)
        done = finish(stage, run, f"transfer to {name}")
        assert done.state.is_completed(), done.state
        shown = artifacts(run)
        assert {"results", "cells", "blocks", "accuracy"} <= set(shown), sorted(shown)
        took = f"{time.monotonic() - started:.0f} s"
        stage.say(f"transfer to {name}: {done.state.name} ({took}), artifacts {', '.join(sorted(map(str, shown)))}")
    return runs


def garbage_on_schedule(stage: Stage) -> None:
    """A schedule of thirty seconds for `cache-gc`: a run that nobody has triggered comes and completes."""
    stage.run("prefect", "deployment", "schedule", "create", "cache-gc/cache-gc", "--interval", "30", "--accept-yes")

    def done() -> bool:
        return any(run.auto_scheduled and run.state.is_completed() for run in runs_of("cache-gc"))

    seconds = stage.await_("a scheduled run of cache-gc", done, LONG)
    _pause("cache-gc")
    ended = next(run for run in runs_of("cache-gc") if run.state.is_completed())
    page = artifacts(str(ended.id))["cache-gc"]
    stage.say(f"cache-gc ran by its schedule after {seconds:.0f} s: {page.strip().splitlines()[-1]}")


def watch(stage: Stage, publish: bool, meanwhile: Callable[[str], None] = lambda run: None) -> FlowRun:
    """Triggers the watch, waits until it asks, and answers.

    Arguments:
        meanwhile: What to do while it waits, with the run's id.
    """
    expert = {key: TRANSFER[key] for key in ("source", "tasks", "samples", "seeds", "oracle")}
    config = {"releases": "releases", "experts": {"digits": expert | {"methods": ["bico"]}}}
    run = trigger(stage, "release-watch", config=config)
    waiting = settle(stage, run, lambda found: found.state.is_paused(), "release-watch asks")
    stage.say(f"release-watch: {waiting.state.name}; {_verdict(artifacts(run)['release'])}")
    meanwhile(run)
    resume_flow_run(run, run_input={"publish": publish, "comment": "rehearsal"})
    done = finish(stage, run, "release-watch answered")
    assert done.state.is_completed(), done.state
    stage.say(f"release-watch, answered with publish={publish}: {done.state.name}")
    return done


def _verdict(page: str) -> str:
    return next(line.strip("*") for line in page.splitlines() if line.startswith("**"))
