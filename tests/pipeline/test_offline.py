"""A run talks to nobody but itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flow_setup import SHORT
from tests.places import SOURCES

HOOK = Path(__file__).parents[1] / "offline"
LOOPBACK = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "None", ""}
BICO = [sys.executable, "-c", "from flows.cli import main; main()"]
# Alone in a network of its own, in which only the loopback device works.
ISOLATED = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def isolation() -> list[str]:
    """How to cut a command off, where this machine permits it; else the hook alone has to tell."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return []
    done = subprocess.run([*ISOLATED, "true"], capture_output=True, check=False)
    return ISOLATED if done.returncode == 0 else []


def asked(log: Path) -> list[str]:
    """Whom the processes tried to reach or to find, beyond this machine; the machine may look up its own name."""
    here = LOOPBACK | {os.uname().nodename, "b''"}
    lines = [line.split(maxsplit=2) for line in log.read_text().splitlines()] if log.exists() else []
    return [" ".join(line) for line in lines if line[1].strip("b'") not in here and not line[1].startswith("127.")]


def environment(log: Path, **more: str) -> dict[str, str]:
    """As after a fresh installation: nothing that switches telemetry off is set."""
    quiet = ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED", "HF_HUB_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in (*quiet, "PREFECT_API_URL", "CI")}
    paths = os.pathsep.join([str(HOOK), SOURCES])
    return kept | {"PYTHONPATH": paths, "BICO_TEST_CONNECTIONS": str(log)} | more


def test_the_hook_sees_an_attempt(tmp_path: Path) -> None:
    """The test below can fail: whoever tries to reach another machine is noticed, at once and in child processes."""
    log = tmp_path / "log"
    attempt = "import socket; s = socket.socket(); s.settimeout(0.2); s.connect_ex(('192.0.2.1', 9))"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {attempt!r}])"
    subprocess.run([*isolation(), sys.executable, "-c", child], env=environment(log), check=True, timeout=60)
    assert asked(log) == ["socket.connect 192.0.2.1 -c"]


def test_a_transfer_without_a_network_completes_and_asks_nobody(releases: dict[str, Path], tmp_path: Path) -> None:
    """Prefect's server, Dask's workers and MLflow's database included."""
    config = {
        "source": str(releases["a"]),
        "target": str(releases["b"]),
        "tasks": ["digits"],
        "methods": ["bico"],
        "samples": [4],
        "seeds": [0],
        "test_limit": 20,
        "oracle": False,
        "finetune": SHORT,
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))  # JSON is YAML
    log = tmp_path / "log"
    done = subprocess.run(
        [*isolation(), *BICO, "transfer", "--config", str(tmp_path / "run.yaml"), "--device", "cpu", "--json"],
        env=environment(log, BICO_HOME=str(tmp_path / "home"), PREFECT_HOME=str(tmp_path / "prefect")),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"]["computed"] > 5
    assert asked(log) == []
    assert "127.0.0.1" in log.read_text()  # the hook was there, in a run that talks to its own server


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "BICO_STORE", "BICO_DASK_SCHEDULER"])
def test_addresses_with_passwords_are_refused_unseen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bico.errors import ConfigError
    from flows.settings import Settings

    monkeypatch.setenv(name, "https://me:hunter2@host:5000")
    with pytest.raises(ConfigError, match="keep passwords out of addresses") as caught:
        Settings.from_environment()
    assert "hunter2" not in str(caught.value) and "***@host" in str(caught.value)
