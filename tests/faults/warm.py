"""Processes forked from an early copy of this one, which has imported everything and has no threads yet.

`multiprocessing`'s fork server would import PyTorch, Prefect and MLflow once more; on a busy machine that is minutes.
A process is known by its pidfd, so that killing it never hits a stranger.
"""

import ctypes
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import disks, work

_LIMIT = 1 << 20
DIE_WITH_PARENT = 1

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_MAX_RETRIES": "2",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "DASK_LOGGING__DISTRIBUTED": "error",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
}
"""For runs without telemetry or noise, that give up soon."""


@contextmanager
def loaded(folder: Path, runs: bool) -> Iterator[None]:
    """Loads what trials need; `copied` then has their processes forked from what is loaded.

    Arguments:
        folder: Where the runs' models and Prefect's files go; Prefect asks while it is loaded.
        runs: Whether there will be whole runs, which need more.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("BICO_", "PREFECT_"))]:
            patch.delenv(name)
        for name, value in (ENVIRONMENT | {"PREFECT_HOME": str(folder / "prefect")}).items():
            patch.setenv(name, value)
        import moto.server  # noqa: F401 - here once, not in each job

        import storage.bucket  # noqa: F401 - only now

        if runs:
            from tests.faults import flow_child, run_catalogue  # noqa: F401

            flow_child.warm_up(folder)
        yield


@contextmanager
def copied() -> Iterator[None]:
    """Has the processes of trials forked from a copy of this one, in a mount namespace of their own."""
    with pytest.MonkeyPatch.context() as patch:
        if disks.possible():
            disks.alone()
        patch.setattr(work, "PROCESSES", WarmProcesses())
        yield


class WarmProcess:
    """One process; like `multiprocessing.Process`, as far as faults need it."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], ask: Callable[[bytes], int]) -> None:
        self._work, self._ask = pickle.dumps((target, args)), ask
        self._handle = -1

    def start(self) -> None:
        pid = self._ask(self._work)
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = -1  # over before we looked

    def is_alive(self) -> bool:
        return self._handle >= 0 and not select.select([self._handle], [], [], 0)[0]

    def join(self, timeout: float | None = None) -> None:
        if self._handle >= 0:
            select.select([self._handle], [], [], timeout)

    def kill(self) -> None:
        if self.is_alive():
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    @property
    def exitcode(self) -> None:
        """Not known: the process is a child of the copy."""

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


class WarmProcesses:
    """Makes the copy; takes the place of a `multiprocessing` context."""

    def __init__(self) -> None:
        # Of Python's own: a background thread of a C library (jemalloc's) is that library's to stop for a fork.
        if threading.active_count() > 1:
            raise AssertionError("a process with threads cannot be copied")
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._socket.close()
            _serve(theirs)
        theirs.close()

    def Process(self, target: Callable[..., None], args: tuple[Any, ...]) -> WarmProcess:  # noqa: N802 - as there
        return WarmProcess(target, args, self._ask)

    def _ask(self, work: bytes) -> int:
        with self._lock:
            self._socket.send(work)
            return int(self._socket.recv(_LIMIT))


def _serve(requests: socket.socket) -> None:
    """Forks for every request until the other side is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need nobody to ask after them
    while work := requests.recv(_LIMIT):
        pid = os.fork()
        if pid == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)  # nothing outlives the session
            _work(work)
        requests.send(str(pid).encode())
    os._exit(0)


def _work(work: bytes) -> None:
    try:
        target, args = pickle.loads(work)  # ours, from the other side of the fork
        target(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
