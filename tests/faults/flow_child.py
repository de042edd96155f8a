"""What runs in processes that may die: a short transfer, a Dask worker, a Prefect server.

They are forked from a process that has imported everything already (`multiprocessing`'s fork server): starting one
costs milliseconds in place of the seconds that PyTorch, Prefect and MLflow take to load.
"""

import asyncio
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import uvicorn
from distributed import Worker
from prefect.server.api.server import create_app
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

import storage.bucket
import storage.tracking  # noqa: F401 - the same
from bico.reporting.plots import plot_accuracy
from flows.config import TransferConfig
from flows.planning.plan import make_plan
from flows.services.server import one_certificate
from flows.settings import Settings
from flows.transfer import transfer
from storage.fault_points import intercepted
from tasks.inputs import open_head, open_split
from tests.faults import mutations
from tests.faults.work import Fault, Injector, skewed
from tests.releases import write_release
from tests.rows import row


def short_transfer(folder: Path) -> dict[str, Any]:
    """The run that faults are put into."""
    return {
        "source": str(folder / "a"), "target": str(folder / "b"), "tasks": ["digits"], "methods": ["bico"],
        "samples": [6], "seeds": [0], "test_limit": 20, "oracle": False, "export": "none", "baselines": False,
        "finetune": {"steps": 2, "batch_size": 8, "lr": 1e-3, "warmup": 1},
    }  # fmt: skip


def warm_up(folder: Path) -> None:
    """Writes the models and opens them: what is forked from this process then has them open."""
    for seed, name in enumerate("ab", 1):
        write_release(folder / name, seed, layers=1)
    config = TransferConfig(**short_transfer(folder), out=folder / "out")
    plan = make_plan(config, Settings(home=folder / "home", device="cpu"))
    (task,) = plan.tasks.values()
    for files in (plan.source, plan.target):
        open_head(files, "cpu", task)
        for split in ("train", "test"):
            open_split(files, "cpu", task, split)
    plot_accuracy([row("digits", "bico", 6, 0, 50.0)]).figure.savefig(io.BytesIO(), format="png")  # finds its fonts


@dataclass(frozen=True)
class Setting:
    """What a process is told besides its work."""

    environment: dict[str, str]
    log: Path
    fault: Fault | None = None
    token: Path | None = None
    """Touched by the process that the fault strikes first: no other is struck."""
    skew: float = 0.0
    """Seconds by which its clock is ahead."""


class Once(Injector):
    """Strikes once for all processes: a task that is run again in another worker gets through."""

    def __init__(self, setting: Setting) -> None:
        assert setting.fault is not None and setting.token is not None
        super().__init__(setting.fault)
        self._token = setting.token

    def strike(self, action: str) -> None:
        try:
            self._token.touch(exist_ok=False)
        except FileExistsError:
            return
        if action == "call":  # the harness does something to a server or a wire
            done = self._token.with_suffix(".done")
            while not done.exists():
                time.sleep(0.01)
        else:
            super().strike(action)


@contextmanager
def living_by(setting: Setting) -> Iterator[None]:
    os.environ.clear()
    os.environ.update(setting.environment)
    log = os.open(setting.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    mutations.apply()
    with ExitStack() as held:
        if setting.skew:
            skewed(setting.skew)
        if setting.fault:
            held.enter_context(intercepted(Once(setting)))
        yield


def run_flow(setting: Setting, api: str, config: dict[str, Any], settings: dict[str, Any], answer: Path) -> None:
    prefect = {
        PREFECT_API_URL: api,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # a run would wait a second for its thread at the end
        PREFECT_API_SSL_CERT_FILE: str(one_certificate(Path(gettempdir()))),
    }
    with living_by(setting), temporary_settings(prefect):
        result = transfer(TransferConfig(**config), Settings(**settings))
        unfinished = answer.with_suffix(".new")
        unfinished.write_text(json.dumps(result.to_json()))
        unfinished.rename(answer)


def run_worker(setting: Setting, scheduler: str, folder: Path) -> None:
    async def work() -> None:
        async with Worker(scheduler, nthreads=1, dashboard=False, local_directory=str(folder)) as worker:
            await worker.finished()

    with living_by(setting):
        asyncio.run(work())


def run_prefect(setting: Setting, port: int, folder: Path) -> None:
    database = {PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{folder / 'prefect.db'}"}
    with living_by(setting), temporary_settings(database):
        app = create_app(ephemeral=True, webserver_only=True)  # no page for people, and no schedules
        uvicorn.run(app, port=port, log_level="error", lifespan="on")


def run_mlflow(setting: Setting, port: int, folder: Path) -> None:
    with living_by(setting):
        # What `mlflow server` tells its workers.
        os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
        os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = str(folder / "served")
        os.environ["_MLFLOW_SERVER_SERVE_ARTIFACTS"] = "true"
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        from mlflow.server.fastapi_app import app  # reads them

        uvicorn.run(app, port=port, log_level="error")
