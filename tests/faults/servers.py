"""The servers that whole runs talk to, as processes that can be killed and started again."""

import os
import socket
import time
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

from distributed import LocalCluster

from tests.faults import work
from tests.faults.flow_child import Setting, run_mlflow, run_prefect, run_worker
from tests.faults.warm import WarmProcess

READY = 600
"""Seconds that a server may take to answer on a busy machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for(url: str, server: WarmProcess) -> None:
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}; its process is {'alive' if server.is_alive() else 'dead'}")


class Prefect:
    """A Prefect server with a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._setting = Setting(dict(os.environ), folder / "prefect.log")
        self.start()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        self._process = work.PROCESSES.Process(target=run_prefect, args=(self._setting, self.port, self._folder))
        self._process.start()
        wait_for(f"{self.api}/health", self._process)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


class Dask:
    """A scheduler, and workers in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster = LocalCluster(n_workers=0, host="127.0.0.1", scheduler_kwargs={"dashboard": False})
        self.address: str = self._cluster.scheduler_address
        self._workers: list[WarmProcess] = []

    @property
    def has_workers(self) -> bool:
        return any(process.is_alive() for process in self._workers)

    def start_workers(self, count: int, **fault: object) -> None:
        setting = Setting(dict(os.environ), self._folder / "workers.log", **fault)  # type: ignore[arg-type]
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

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        setting = Setting(dict(os.environ), folder / "mlflow.log")
        self._process = work.PROCESSES.Process(target=run_mlflow, args=(setting, self.port, folder))
        self._process.start()
        wait_for(f"http://127.0.0.1:{self.port}/health", self._process)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
