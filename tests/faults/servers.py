"""The servers that whole runs talk to, as processes that can be killed and started again."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from distributed import LocalCluster

from tests.faults import work
from tests.faults.flow_child import Setting, run_prefect, run_worker
from tests.faults.warm import WarmProcess

READY = 180
"""Seconds that a server may take to answer on a busy machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(url: str, alive: object) -> None:
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{alive} does not answer at {url}")


class Prefect:
    """A Prefect server with a database of its own."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.port = free_port()
        self._setting = Setting(dict(environment), log)
        self.start()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        self._process = work.PROCESSES.Process(target=run_prefect, args=(self._setting, self.port))
        self._process.start()
        wait_for(f"{self.api}/health", self._process)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


class Dask:
    """A scheduler, and workers in processes of their own."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment, self._folder = dict(environment), folder
        self._cluster = LocalCluster(n_workers=0, host="127.0.0.1", scheduler_kwargs={"dashboard": False})
        self.address: str = self._cluster.scheduler_address
        self._workers: list[WarmProcess] = []

    @property
    def has_workers(self) -> bool:
        return any(process.is_alive() for process in self._workers)

    def start_workers(self, count: int, **fault: object) -> None:
        setting = Setting(self._environment, self._folder / "workers.log", **fault)  # type: ignore[arg-type]
        for _ in range(count):
            place = self._folder / f"worker-{uuid.uuid4().hex}"
            process = work.PROCESSES.Process(target=run_worker, args=(setting, self.address, place))
            process.start()
            self._workers.append(process)

    def kill_workers(self) -> None:
        for process in self._workers:
            process.kill()
            process.join()
        self._workers.clear()

    def close(self) -> None:
        self.kill_workers()
        self._cluster.close()


class MLflow:
    """An MLflow server on the database that the other runs use as a file."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'served.db'}"]
        command += ["--artifacts-destination", str(folder / "served")]
        with (folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(f"http://127.0.0.1:{self.port}/health", self._process)

    def kill(self) -> None:
        os.killpg(self._process.pid, 9)
        self._process.wait()
