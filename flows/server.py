"""A Prefect API for runs with nothing started by hand."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import certifi


@contextmanager
def prefect_api() -> Iterator[str]:
    """Serves Prefect's API from a process of its own for the time of the context, unless one is configured.

    Prefect could start one by itself, but then every Dask worker would start another. The database is the one of
    `prefect server start`, so runs show there afterwards. The server ends with this process, also if that is killed.

    Yields:
        The API's address.
    """
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        yield configured
        return
    server = _server()
    server.start(timeout=120)
    try:
        with TemporaryDirectory(prefix="bico-") as folder:
            own = {PREFECT_API_URL: server.api_url, PREFECT_API_SSL_CERT_FILE: str(one_certificate(Path(folder)))}
            with temporary_settings(own):
                try:
                    yield server.api_url
                finally:
                    _send_what_waits()
    finally:
        server.stop()


def one_certificate(folder: Path) -> Path:
    """Writes a file with one certificate: every task makes two clients of the API, each of which reads all certificates
    there are. That is half of a task's time, and on loopback none is needed.
    """
    text = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----"
    path = folder / "one-certificate.pem"
    path.write_text(text[text.index("-----BEGIN CERTIFICATE-----") : text.index(end)] + end + "\n")
    return path


def _server() -> Any:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    class Server(SubprocessASGIServer):
        """Prefect's own, in a process that ends with this one."""

        def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
            settings = get_current_settings().to_environment_variables(exclude_unset=True)
            own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
            command = [sys.executable, "-m", "flows.api_process", str(self.port)]
            # Nothing is ever written to the pipe: that it ends is the message. In a session of its own the server
            # outlives Ctrl-C for as long as the run needs to say that it was stopped.
            environment = {**os.environ, **own, **settings}
            return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)

    return Server()


def _send_what_waits() -> None:
    """Sends queued logs and events: at exit they would wait for a server that is no longer there."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for queue in (APILogWorker, EventsWorker):
        queue.drain_all(timeout=10, at_exit=False)
