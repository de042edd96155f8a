"""Servers as processes on loopback, in one temporary folder, and the environment that points to them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.services.server import one_certificate

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SECRET = "rehearsal-secret-key"
"""The bucket's key: it must turn up nowhere."""
BUCKET = "experts"
READY = 600.0
PATIENCE = 30.0
"""Seconds that a server may take to end after it was asked to."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Stage:
    """What has been started, and what has to be stopped.

    Arguments:
        folder: For logs, databases and everything else.
        say: Where a line for people goes.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.root = folder / "root"
        """What workers are told is the project's folder."""
        self.running: list[tuple[str, subprocess.Popen]] = []
        self.ports = {name: free_port() for name in ("prefect", "mlflow", "dask", "s3")}
        self.api = f"http://127.0.0.1:{self.ports['prefect']}/api"
        self.ui = self.api.removesuffix("/api")
        self.mlflow = f"http://127.0.0.1:{self.ports['mlflow']}"
        self.dask = f"tcp://127.0.0.1:{self.ports['dask']}"
        self.s3 = f"http://127.0.0.1:{self.ports['s3']}"
        own = ("PREFECT_", "BICO_", "MLFLOW_", "AWS_", "DASK_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(own)} | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_API_SSL_CERT_FILE": str(one_certificate(folder)),
            "DASK_LOGGING__DISTRIBUTED": "error",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "120s",
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "120s",
            "BICO_ROOT": str(self.root),
            "BICO_HOME": str(folder / "home"),
            "BICO_CACHE": str(folder / "cache"),
            "BICO_DEVICE": "cpu",
            "BICO_STORE": f"s3://{BUCKET}/rehearsal",
            "BICO_DASK_SCHEDULER": self.dask,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "rehearsal",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "OMP_NUM_THREADS": "1",
        }

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def start(self, name: str, *command: str, cwd: Path | None = None) -> None:
        """Starts a server in a session of its own, so that an interrupt here reaches none of them by chance."""
        self.log(name).parent.mkdir(exist_ok=True)
        with self.log(name).open("w") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=cwd or self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append((name, process))

    def run(self, *command: str, cwd: Path = ROOT, without: Iterable[str] = (), **changes: str) -> str:
        """Runs a command to its end and returns what it printed.

        Arguments:
            without: Variables that it does not get.
            changes: Variables that it gets.
        """
        environment = {name: value for name, value in self.environment.items() if name not in without} | changes
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def await_(self, what: str, ready: Callable[[], bool], limit: float = READY) -> float:
        """Waits until something is so and returns the seconds that it took."""
        started = time.monotonic()
        while True:
            with suppress(OSError, urllib.error.URLError):
                if ready():
                    return time.monotonic() - started
            for name, process in self.running:
                if process.poll() is not None:
                    raise AssertionError(
                        f"{name} ended with {process.returncode}: {self.log(name).read_text()[-1500:]}"
                    )
            if time.monotonic() - started > limit:
                raise AssertionError(f"{what}: not within {limit:.0f} s")
            time.sleep(1.0)

    def stop(self) -> list[str]:
        """Asks everything to end, last started first, and returns the names of what did not."""
        stubborn = []
        for name, process in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGINT if name == "worker" else signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                stubborn.append(name)
                process.kill()
                process.wait()
        self.running.clear()
        return stubborn + [f"{name} {pid}" for name, pid in children_left(self.folder)]


def answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200


def children_left(folder: Path) -> Iterable[tuple[str, int]]:
    """Processes that still have the rehearsal's folder in their environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                yield (path.parent / "comm").read_text().strip(), int(path.parent.name)


def lay_out(stage: Stage) -> None:
    """A project folder as a worker may have it: the code, and a folder for releases that is empty yet."""
    stage.root.mkdir()
    for name in ("bico", "storage", "tasks", "flows", "configs", "zoo", "prefect.yaml"):
        (stage.root / name).symlink_to(ROOT / name)
    (stage.root / "releases").mkdir()


def release(stage: Stage, model: str, name: str) -> None:
    """A new release comes out: under its name when it is whole."""
    unfinished = stage.root / f".{name}"
    shutil.copytree(ROOT / "zoo" / model, unfinished)
    unfinished.rename(stage.root / "releases" / name)


@contextmanager
def servers(stage: Stage) -> Iterator[None]:
    """Starts all servers, and stops them whatever happens; complains about what would not stop."""
    started = time.monotonic()
    try:
        python, ports = sys.executable, {name: str(port) for name, port in stage.ports.items()}
        stage.start("s3", python, "-m", "moto.server", "-H", "127.0.0.1", "-p", ports["s3"])
        stage.start("prefect", f"{BIN}/prefect", "server", "start", "--host", "127.0.0.1", "--port", ports["prefect"])
        stage.start(
            "mlflow", f"{BIN}/mlflow", "server", "--host", "127.0.0.1", "--port", ports["mlflow"], "--workers", "1",
            "--backend-store-uri", f"sqlite:///{stage.folder}/mlflow.db",
            "--artifacts-destination", f"{stage.folder}/mlflow-artifacts",
        )  # fmt: skip
        scheduler = ["--host", "127.0.0.1", "--port", ports["dask"], "--no-dashboard"]
        stage.start("dask-scheduler", f"{BIN}/dask", "scheduler", *scheduler)
        stage.await_("S3", lambda: answers(f"{stage.s3}/moto-api/"))
        urllib.request.urlopen(urllib.request.Request(f"{stage.s3}/{BUCKET}", method="PUT")).close()
        stage.await_(
            "Dask's scheduler", lambda: not socket.create_connection(("127.0.0.1", stage.ports["dask"])).close()
        )
        options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(stage.folder / "dask")]
        for number in (1, 2):
            stage.start(f"dask-worker-{number}", f"{BIN}/dask", "worker", stage.dask, *options, cwd=stage.root)
        stage.await_("Prefect's server", lambda: answers(f"{stage.api}/health"))
        stage.await_("MLflow's server", lambda: answers(f"{stage.mlflow}/health"))
        stage.say(f"S3, Prefect, MLflow, a Dask scheduler and two workers are up ({time.monotonic() - started:.0f} s)")
        yield
    finally:
        started = time.monotonic()
        stubborn = stage.stop()
        stage.say(f"All servers have ended ({time.monotonic() - started:.0f} s)")
        if stubborn:
            raise AssertionError(f"did not end by itself: {', '.join(stubborn)}")
