"""Commands of `bico` as somebody gives them, each in a process of its own: what they print, and what they take."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


LAUNCH = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(process.pid, 0)
json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss], open(sys.argv[1], "w"))
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Stands between: on Linux the peak memory of a process begins with that of the one that started it."""


class FailedCommandError(RuntimeError):
    """A command has not ended well."""


@dataclass(frozen=True)
class Took:
    """One command."""

    seconds: float
    """Elapsed."""
    cpu: float
    """CPU seconds, of all processes that it started and waited for."""
    memory: int
    """Bytes that the largest of its processes held at most."""
    out: str
    """What it printed on standard output."""
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def bico(*arguments: str | Path, home: Path, cwd: Path = ROOT, prefect: Path | None = None) -> Took:
    """Runs one command of `bico`.

    Arguments:
        home: Of the store and MLflow.
        prefect: Of Prefect's database; by default beside `home`, so that nobody else's runs slow it down.

    Raises:
        FailedCommandError: If it exits with anything but 0.
    """
    own = {"BICO_HOME": str(home), "PREFECT_HOME": str(prefect or home.parent / "prefect"), "PYTHONPATH": str(ROOT)}
    return python("-m", "flows", *arguments, environment=own, cwd=cwd)


def python(*arguments: str | Path, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Took:
    """Runs Python.

    Raises:
        FailedCommandError: If it exits with anything but 0.
    """
    command = [sys.executable, *map(str, arguments)]
    with TemporaryDirectory() as folder:
        note = Path(folder) / "took.json"
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-I", "-c", LAUNCH, str(note), *command],
            cwd=cwd,
            env=os.environ | dict(environment or {}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise FailedCommandError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        cpu, memory = json.loads(note.read_text(encoding="utf-8"))
    unit = 1 if sys.platform == "darwin" else 1024
    return Took(seconds, cpu, memory * unit, done.stdout, done.stderr)


def transfer(brief: Mapping[str, Any], out: Path, *more: str) -> dict[str, Any]:
    """What a `bico transfer` prints as JSON: rows, and outputs. What it says meanwhile is seen; artefacts are cached, so that a
    run that was stopped goes on where it was.

    Arguments:
        brief: Its configuration.
        out: For results, and for the brief.
        more: Further arguments.

    Raises:
        CalledProcessError: If it exits with anything but 0.
    """
    config = write(out / "brief.yaml", yaml.safe_dump(dict(brief)))
    return json.loads(printed("transfer", "--config", str(config), *more, "--out", str(out), "--json"))


def printed(*arguments: str) -> str:
    """What a command of `bico` prints, in this process' own surroundings.

    Raises:
        CalledProcessError: If it exits with anything but 0.
    """
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def write(path: Path, text: str) -> Path:
    """Replaces a file, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)
