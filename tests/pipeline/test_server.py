"""The API that a run brings along ends with the run, however that ends."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.places import SOURCES

RUN = "import time; from flows.server import prefect_api\nwith prefect_api() as api: print(api, flush=True); time.sleep(600)"


def alive(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


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
def test_the_server_ends_with_its_run(how: signal.Signals, tmp_path: Path) -> None:
    with started(RUN, tmp_path) as process:
        assert process.stdout is not None
        api = process.stdout.readline().strip()
        assert alive(api)
        process.send_signal(how)
        process.communicate(timeout=20)
        assert ended(api)


FLOW = """
import time
from flows.server import prefect_api
from prefect import flow
@flow
def waits(api: str) -> None:
    print(api, flush=True)
    time.sleep(600)
with prefect_api() as api:
    waits(api)
"""


def test_ctrl_c_stops_a_run_without_a_page_of_errors(tmp_path: Path) -> None:
    """A terminal sends it to all processes of a run. The server has to outlive the flow, which tells it the end."""
    with started(FLOW, tmp_path) as process:
        assert process.stdout is not None
        api = process.stdout.readline().strip()
        assert alive(api)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0 and "ConnectError" not in errors and "Error logging to API" not in errors
        assert ended(api)
