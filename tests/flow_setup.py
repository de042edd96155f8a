"""What the flow tests share: a Prefect API, a Dask worker, two tiny releases, and a short transfer that has been made."""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect.settings import (
    PREFECT_API_DATABASE_CONNECTION_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED,
    PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED,
    temporary_settings,
)

from flows.config import TransferConfig
from flows.planning.forecast import look_ahead
from flows.planning.plan import make_plan
from flows.planning.ready import Ready, handed
from flows.services.server import prefect_api
from flows.settings import Settings
from flows.transfer import Result, transfer
from storage.tracking import _ready
from tests.releases import write_release

SHORT = {"steps": 2, "batch_size": 8, "lr": 1e-3, "warmup": 1}


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect's API, as the command line serves it, with a database of its own."""
    folder = tmp_path_factory.mktemp("prefect")
    own = {
        PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # a flow run would wait a second for its heartbeat thread at the end
        # What nobody here looks at; states of runs and tasks are kept by another service.
        PREFECT_LOGGING_TO_API_ENABLED: False,
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED: False,
        PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED: False,
    }
    # The first process to come here makes the tables, which takes as long as to start; the others copy them.
    template = shared_by_processes(tmp_path_factory) / "prefect.db"
    with temporary_settings(own), ExitStack() as stack:
        with open(template.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if template.exists():
                shutil.copy(template, folder)
                stack.enter_context(prefect_api())
            else:
                stack.enter_context(prefect_api())
                _copy_database(folder / "prefect.db", template)
        yield


def shared_by_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all processes of a test run see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def _copy_database(file: Path, to: Path) -> None:
    """Copies a database that is in use; the copy is there when it is whole."""
    unfinished = to.with_suffix(".new")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(unfinished)) as copy:
        source.backup(copy)
    unfinished.rename(to)


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a Dask cluster, as a user may have one running. Its worker is a thread, but what it is sent goes through a
    socket like anywhere; workers that are processes are those that the command line starts (`test_offline`).
    """
    here = {"processes": False, "protocol": "tcp", "dashboard_address": ":0"}
    with LocalCluster(n_workers=1, threads_per_worker=1, **here) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("releases")
    shapes = {"a": {}, "b": {}, "wide": {"width": 24, "layers": 3, "image": 16}}
    return {name: write_release(root / name, seed, **shapes[name]) for seed, name in enumerate(shapes, start=1)}


@pytest.fixture(scope="session")
def runs_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: copied, since making one takes as long as a short transfer."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    _ready(file)
    return file


class Bench:
    """Runs short transfers in one home folder, in which nothing has been made yet but an empty database of runs."""

    first: Result
    """Of the run that has been made already, if one has."""

    def __init__(self, releases: dict[str, Path], folder: Path, scheduler: str, runs_database: Path) -> None:
        self.releases, self.folder = releases, folder
        self.settings = Settings(home=folder / "home", dask_scheduler=scheduler, device="cpu")
        self.settings.home.mkdir(parents=True)
        shutil.copy(runs_database, self.settings.home)

    def config(self, **changes: Any) -> TransferConfig:
        """A short transfer. Where it writes models, its folder is its own, as another run's would be refused."""
        wrote = len(list(self.folder.glob("models-*")))
        values = {
            "source": str(self.releases["a"]),
            "target": str(self.releases["b"]),
            "tasks": ["digits"],
            "methods": ["bico", "naive"],
            "samples": [4, 8],
            "seeds": [0],
            "test_limit": 30,
            "finetune": SHORT,
            "baselines": False,
            "export": "none",
            "out": self.folder / ("out" if changes.get("export", "none") == "none" else f"models-{wrote}"),
        }
        return TransferConfig(**values | changes)

    def run(self, **changes: Any) -> Result:
        """Runs a transfer, whose plan has to foresee every stage."""
        config = self.config(**changes)
        plan = make_plan(config, self.settings)
        ahead = look_ahead(plan, self.settings)
        with handed(Ready(config, self.settings, plan)):
            result = transfer(config, self.settings)
        assert ahead.stages == result.stages and ahead.rows == len(result.rows)
        return result

    def after(self, other: "Bench") -> "Bench":
        """This bench with a copy of what is in another's home."""
        shutil.rmtree(self.settings.home)
        shutil.copytree(other.settings.home, self.settings.home)
        self.first = other.first
        return self


@pytest.fixture(scope="session")
def first_run(
    api: None, releases: dict[str, Path], scheduler: str, runs_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """A bench after its run of `config()`."""
    bench = Bench(releases, tmp_path_factory.mktemp("first"), scheduler, runs_database)
    bench.first = bench.run()
    return bench


@pytest.fixture
def ran(bench: Bench, first_run: Bench) -> Bench:
    """A bench in whose home the run of `config()` has been made: for tests of what comes after, or of what it left."""
    return bench.after(first_run)


@pytest.fixture
def bench(api: None, releases: dict[str, Path], tmp_path: Path, scheduler: str, runs_database: Path) -> Bench:
    return Bench(releases, tmp_path, scheduler, runs_database)
