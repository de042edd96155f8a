"""What the flow tests share: a Prefect API, a Dask worker, two tiny releases, and a short transfer."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.config import Settings, TransferConfig
from flows.plan import make_plan
from flows.plan_cli import forecast
from flows.transfer import Result, transfer
from tests.releases import write_release

SHORT = {"steps": 2, "batch_size": 8, "lr": 1e-3, "warmup": 1}


@pytest.fixture(scope="session")
def api() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        # A flow run would wait a second for its heartbeat thread at the end.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a Dask cluster with one worker process, as a user may have one running."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("releases")
    shapes = {"a": {}, "b": {}, "wide": {"width": 24, "layers": 3, "image": 16}}
    return {name: write_release(root / name, seed, **shapes[name]) for seed, name in enumerate(shapes, start=1)}


class Bench:
    """Runs short transfers in one home folder."""

    first: Result
    """Of the run that has been made already, if one has."""

    def __init__(self, releases: dict[str, Path], folder: Path, scheduler: str) -> None:
        self.releases, self.folder = releases, folder
        self.settings = Settings(home=folder / "home", dask_scheduler=scheduler, device="cpu")

    def config(self, **changes: Any) -> TransferConfig:
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
            "out": self.folder / "out",
        }
        return TransferConfig(**values | changes)

    def run(self, **changes: Any) -> Result:
        """Runs a transfer, whose plan has to foresee every stage."""
        config = self.config(**changes)
        ahead, _ = forecast(make_plan(config, self.settings), self.settings)
        result = transfer(config, self.settings)
        assert ahead.stages == result.stages and ahead.rows == len(result.rows)
        return result


@pytest.fixture(scope="session")
def first_run(
    api: None, releases: dict[str, Path], scheduler: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """The home of a bench after its run of `config()`, and what that gave."""
    bench = Bench(releases, tmp_path_factory.mktemp("first"), scheduler)
    result = bench.run()
    return bench.settings.home, result


@pytest.fixture
def ran(api: None, releases: dict[str, Path], tmp_path: Path, scheduler: str, first_run: tuple[Path, Result]) -> Bench:
    """A bench in whose home the run of `config()` has been made: for tests of what comes after."""
    bench = Bench(releases, tmp_path, scheduler)
    home, bench.first = first_run
    shutil.copytree(home, bench.settings.home)
    return bench


@pytest.fixture
def bench(api: None, releases: dict[str, Path], tmp_path: Path, scheduler: str) -> Bench:
    return Bench(releases, tmp_path, scheduler)
