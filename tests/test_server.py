"""The API that a run brings along ends with the run, however that ends."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_its_run(how: signal.Signals, tmp_path: Path) -> None:
    quiet = {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = kept | quiet | {"PYTHONPATH": SOURCES, "PREFECT_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", RUN], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    api = process.stdout.readline().strip()
    assert alive(api)
    process.send_signal(how)
    process.wait(20)
    deadline = time.monotonic() + 20
    while alive(api) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(api)
    process.stdout.close()
