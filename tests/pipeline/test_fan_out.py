"""A cluster that does no work ends the run, where Dask would wait for ever."""

import time
from pathlib import Path

import pytest
from distributed import CancelledError, LocalCluster
from prefect import flow, task
from prefect_dask import DaskTaskRunner

import flows.services.fan_out
from bico.errors import ClusterError
from flows.settings import Settings
from tasks.cached_stage import Workspace


@task
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


def waited_for(address: str, seconds: float, limit: float | None) -> str:
    @flow
    def wait() -> str:
        return flows.services.fan_out._result(nap.submit(seconds), "block-0", limit)

    return wait.with_options(task_runner=DaskTaskRunner(address=address))()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.services.fan_out, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(flows.services.fan_out, "NO_WORKER", 1.0)


def test_a_slow_block_is_waited_for_and_a_hanging_one_is_not(api: None, scheduler: str) -> None:
    assert waited_for(scheduler, 0.0, None) == "done"
    assert waited_for(scheduler, 1.5, None) == "done"  # longer than a cluster may be without workers
    with pytest.raises(
        ClusterError, match=r"The maps of block-0 kept the run waiting for more than 0\.5 s.*BICO_STAGE"
    ):
        waited_for(scheduler, 3.0, 0.5)


def test_a_cluster_without_workers_is_given_up(api: None) -> None:
    with LocalCluster(n_workers=0, dashboard_address=":0", host="127.0.0.1") as cluster:
        with pytest.raises(ClusterError, match=r"has had no worker for 1 s: start some"):
            waited_for(cluster.scheduler_address, 0.0, None)


def test_a_local_cluster_is_started_for_work_once_and_again_after_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, closed = [], []

    class Local:
        def __init__(self, n_workers: int, **_: object) -> None:
            started.append(n_workers)
            self.scheduler_address = f"tcp://local:{len(started)}"

        def close(self) -> None:
            closed.append(self.scheduler_address)

    monkeypatch.setattr(flows.services.fan_out, "LocalCluster", Local)
    with flows.services.fan_out.Cluster(Settings(home=tmp_path, workers=3)) as cluster:
        assert not started
        assert [cluster._address(), cluster._address()] == ["tcp://local:1"] * 2
        cluster._close()
        assert cluster._address() == "tcp://local:2" and started == [3, 3] and closed == ["tcp://local:1"]
    assert closed == ["tcp://local:1", "tcp://local:2"]


@pytest.mark.parametrize(("losses", "fine"), [(0, True), (2, True), (3, False)])
def test_a_cluster_that_was_lost_is_asked_again(
    losses: int, fine: bool, api: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Fake:
        @staticmethod
        def with_options(task_runner: DaskTaskRunner):
            def run(*args: object) -> list[str]:
                asked.append(task_runner)
                if len(asked) <= losses:
                    raise CancelledError("solve-maps", "scheduler-connection-lost")
                return ["solved"]

            return run

    monkeypatch.setattr(flows.services.fan_out, "fan_out", Fake)

    @flow
    def solve() -> list[str]:
        settings = Settings(home=tmp_path, dask_scheduler="tcp://nowhere:1")
        with flows.services.fan_out.Cluster(settings) as cluster:
            return cluster.solve(Workspace(str(tmp_path)), [])

    if fine:
        assert solve() == ["solved"] and len(asked) == losses + 1
    else:
        with pytest.raises(ClusterError, match="was lost 3 times.*scheduler-connection-lost"):
            solve()
