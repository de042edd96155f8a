"""The API that a run brings along ends with the run, however that ends."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings
from sqlalchemy import text

from bico.errors import ServerError
from flows.services.api_process import wait_to_write
from flows.services.server import _serving
from tests.flow_setup import shared_by_processes
from tests.places import SOURCES

RUN = "import time; from flows.services.server import prefect_api\nwith prefect_api() as api: print(api, flush=True); time.sleep(600)"


def alive(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture
def home(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's home, with a database if one was made for other tests: its tables take as long as the server's start."""
    template = shared_by_processes(tmp_path_factory) / "prefect.db"
    if template.exists():
        shutil.copy(template, tmp_path)
    return tmp_path


@contextmanager
def started(code: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    quiet = {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | quiet | {"PYTHONPATH": SOURCES, "PREFECT_HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that a shell has started in the background ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - this process has no threads to mind
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def ended(api: str) -> bool:
    deadline = time.monotonic() + 20
    while alive(api) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive(api)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_its_run(how: signal.Signals, home: Path) -> None:
    with started(RUN, home) as process:
        assert process.stdout is not None
        api = process.stdout.readline().strip()
        assert alive(api)
        process.send_signal(how)
        process.communicate(timeout=20)
        assert ended(api)


FLOW = """
import time
from flows.services.server import prefect_api
from prefect import flow
@flow
def waits(api: str) -> None:
    print(api, flush=True)
    time.sleep(600)
with prefect_api() as api:
    waits(api)
"""


def test_ctrl_c_stops_a_run_without_a_page_of_errors(home: Path) -> None:
    """A terminal sends it to all processes of a run. The server has to outlive the flow, which tells it the end."""
    with started(FLOW, home) as process:
        assert process.stdout is not None
        api = process.stdout.readline().strip()
        assert alive(api)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0 and "ConnectError" not in errors and "Error logging to API" not in errors
        assert ended(api)


def test_a_server_that_does_not_start_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ServerError, match=r"ended with code 1 .*PREFECT_API_URL") as caught, _serving(timeout=20):
        pass
    assert "\n" not in str(caught.value)


def test_what_reads_before_it_writes_is_not_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Prefect's client would be sent away, and would come back two seconds later, several times in a run."""
    from prefect.server.database.dependencies import MODELS_DEPENDENCIES, provide_database_interface

    file = tmp_path / "prefect.db"
    with closing(sqlite3.connect(file)) as made:
        made.executescript("PRAGMA journal_mode = WAL; CREATE TABLE slots (taken INTEGER)")

    async def take() -> None:
        database = provide_database_interface()
        async with database.session_context(begin_transaction=True) as session:
            assert (await session.execute(text("SELECT count(*) FROM slots"))).scalar() == 0
            with closing(sqlite3.connect(file, timeout=0)) as other:
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("INSERT INTO slots VALUES (2)")
            await session.execute(text("INSERT INTO slots VALUES (1)"))
        await (await database.engine()).dispose()

    for part in MODELS_DEPENDENCIES:
        monkeypatch.setitem(MODELS_DEPENDENCIES, part, None)
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{file}"}):
        wait_to_write()
        asyncio.run(take())
    with closing(sqlite3.connect(file)) as made:
        assert made.execute("SELECT taken FROM slots").fetchall() == [(1,)]
