"""Faults of whole runs: the flow's process, a Dask worker, the Prefect server, MLflow, and files of real artefacts."""

import json
import os
import random
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from storage import upkeep
from storage.artefacts import ArtefactStore
from storage.boundaries import Boundary
from storage.manifest import FaultError
from tests.faults import trials
from tests.faults.flow_child import FAULT
from tests.faults.trials import Outcome
from tests.places import SOURCES
from tests.releases import write_release

PATIENCE = 600
"""Seconds after which a run counts as hanging."""


@dataclass(frozen=True)
class RunCase:
    """One fault of a whole run."""

    name: str
    group: str
    role: str
    """Where it happens: flow or worker (a border of the store there), mlflow, moment, or files."""
    boundary: Boundary = Boundary.COMMITTED
    nth: int = 1
    action: str = "kill"
    damage: Callable[[bytes, random.Random], bytes | None] | None = None


def run_cases() -> Iterator[RunCase]:
    for boundary, nths in {
        Boundary.LOCKED: (1, 6), Boundary.PREPARED: (2, 5), Boundary.BUILT: (1, 4), Boundary.SEALED: (3, 7),
        Boundary.COMMITTED: (1, 2, 4, 6, 8),
    }.items():  # fmt: skip
        for nth in nths:
            yield RunCase(
                f"flow killed at {boundary} {nth}", "flow's process killed at a border", "flow", boundary, nth
            )
    for second in range(4):
        yield RunCase(f"flow killed at random ({second})", "flow's process killed at a random moment", "moment")
    for boundary in (Boundary.PREPARED, Boundary.BUILT, Boundary.SEALED, Boundary.COMMITTED):
        yield RunCase(f"worker killed at {boundary}", "Dask worker killed", "worker", boundary)
    for boundary, nth in ((Boundary.PREPARED, 1), (Boundary.COMMITTED, 3)):
        name = f"Prefect server killed at {boundary} {nth}"
        yield RunCase(name, "Prefect server killed", "flow", boundary, nth, "kill the server")
    yield RunCase("MLflow drops connections", "MLflow lost", "mlflow")
    for action, group in (("full", "full disk during a run"), ("read-only", "store turns read-only during a run")):
        yield RunCase(f"flow: {action}", group, "flow", Boundary.SEALED, 4, action)
        yield RunCase(f"worker: {action}", group, "worker", Boundary.SEALED, 1, action)
    for damage in (trials.truncated, trials.flipped, trials.deleted):
        for number in range(2):
            name = f"file of a run {damage.__name__} ({number})"
            yield RunCase(name, f"file of a run {damage.__name__}", "files", damage=damage)


class Runner:
    """Runs the short transfer in processes, in homes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        releases = [str(write_release(folder / name, seed)) for seed, name in enumerate("ab", 1)]
        self.config = {
            "source": releases[0], "target": releases[1], "tasks": ["digits"], "methods": ["bico", "naive"],
            "samples": [4, 8], "seeds": [0], "test_limit": 30, "export": "none",
            "finetune": {"steps": 2, "batch_size": 8, "lr": 1e-3, "warmup": 1},
        }  # fmt: skip
        self.expected = self.run(folder / "undisturbed")
        if "rows" not in self.expected:
            raise AssertionError(f"the undisturbed run ended with {self.expected}")
        self.files = contents(folder / "undisturbed")

    def run(self, home: Path, kill_after: float | None = None, **environment: str) -> dict:
        """Returns what the run printed, or how it ended; nothing of it lives on."""
        home.mkdir(exist_ok=True)
        config, answer = home / "run.json", home / "answer.json"
        config.write_text(json.dumps(self.config | {"out": str(home / "out")}))
        answer.unlink(missing_ok=True)
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.flow_child", str(config), str(home), str(answer)],
                env=self._environment() | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                process.wait(kill_after or PATIENCE)
            except subprocess.TimeoutExpired:
                if kill_after is None:
                    return {"hung": True}
            finally:
                if kill_after is not None:
                    process.kill()  # the flow's process alone, as the kernel would if memory ran out
                process.wait() if kill_after is not None or process.poll() is not None else None
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # servers and workers that its death has orphaned
                process.wait()
        return json.loads(answer.read_text()) if answer.exists() else {"ended": process.returncode}

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BICO_", "PREFECT_"))}
        return kept | {
            "PYTHONPATH": SOURCES,
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_CLIENT_MAX_RETRIES": "1",
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DASK_LOGGING__DISTRIBUTED": "error",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "DASK_DISTRIBUTED__WORKER__PRELOAD": "tests.faults.flow_child",
        }

    def trial(self, case: RunCase, seed: int) -> Outcome:
        """Injects a fault, looks, runs again, and compares."""
        chance = random.Random(seed)
        home = self.folder / f"home-{seed}"
        struck = self._inject(case, home, chance)
        early = contents(home)
        taken = [key for key, files in early.items() if files != self.files.get(key)]
        again = self.run(home)
        wrong = [] if again.get("rows") == self.expected["rows"] else [f"rows: {again.get('rows', again)}"]
        after = contents(home)
        wrong += [key for key in self.files if after.get(key) != self.files[key]]
        left = ["the second run hung"] if "hung" in again else []
        if (home / "store").exists():
            left += [f"{key}: {fault}" for key, fault in upkeep.verify(ArtefactStore(home / "store"))[1].items()]
        return Outcome(case.name, taken, wrong, left, struck)

    def _inject(self, case: RunCase, home: Path, chance: random.Random) -> bool:
        token = self.folder / f"token-{home.name}"
        if case.role in ("flow", "worker"):
            asked = {"role": case.role, "boundary": case.boundary, "nth": case.nth, "action": case.action}
            self.run(home, **{FAULT: json.dumps(asked | {"token": str(token)})})
            return token.exists()
        if case.role == "moment":
            return "rows" not in self.run(home, kill_after=chance.uniform(0.3, 1.0) * self.expected_seconds)
        if case.role == "mlflow":
            with deaf_server() as address:
                return "rows" not in self.run(home, MLFLOW_TRACKING_URI=address)
        self.run(home)
        files = sorted(p for p in (home / "store/final").rglob("*") if p.is_file() and p.stat().st_size > 64)
        path = chance.choice(files)
        content = case.damage(path.read_bytes(), chance) if case.damage else None
        path.unlink() if content is None else path.write_bytes(content)
        return True

    @property
    def expected_seconds(self) -> float:
        """How long a run takes here: measured with one, once."""
        if not hasattr(self, "_seconds"):
            started = time.perf_counter()
            self.run(self.folder / "timed")
            self._seconds = time.perf_counter() - started
        return self._seconds


def contents(home: Path) -> dict[str, dict[str, str]]:
    """Digests of the files of every artefact that a reader takes for complete."""
    if not (home / "store").exists():
        return {}
    store = ArtefactStore(home / "store")
    found = {}
    for key in store.backend.listed():
        if store.fault(key) is None:
            with suppress(FaultError):
                found[key] = {name: entry.sha256 for name, entry in store.backend.look(key).files.items()}
    return found


@contextmanager
def deaf_server() -> Iterator[str]:
    """A server that takes every connection and drops it."""

    class Drop(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drop) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "http://{}:{}".format(*server.server_address)
        server.shutdown()


def run_faults() -> Iterator[tuple[str, str, Outcome]]:
    """Injects the faults of whole runs, one after the other."""
    with TemporaryDirectory() as folder:
        runner = Runner(Path(folder))
        for number, case in enumerate(run_cases()):
            outcome = runner.trial(case, number)
            if not outcome.struck and case.role != "moment":
                outcome = Outcome(case.name, [], ["the fault did not happen"], [], False)
            yield case.group, "run", outcome
