"""A Prefect API for runs with nothing started by hand."""

import http
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import certifi

from bico.errors import ServerError


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
    with _serving(timeout=240) as address, TemporaryDirectory(prefix="bico-") as folder:
        own = {PREFECT_API_URL: address, PREFECT_API_SSL_CERT_FILE: str(one_certificate(Path(folder)))}
        with temporary_settings(own):
            try:
                yield address
            finally:
                _send_what_waits()


def one_certificate(folder: Path) -> Path:
    """Writes a file with one certificate: every task makes two clients of the API, each of which reads all certificates
    there are. That is half of a task's time, and on loopback none is needed.
    """
    text = Path(certifi.where()).read_text()
    end = "-----END CERTIFICATE-----"
    path = folder / "one-certificate.pem"
    path.write_text(text[text.index("-----BEGIN CERTIFICATE-----") : text.index(end)] + end + "\n")
    return path


@contextmanager
def _serving(timeout: float) -> Iterator[str]:
    """Starts the server's process and waits until it answers; yields its address.

    Prefect has a class for this, in a module that imports all of the server: two seconds in which nothing else is done.

    Raises:
        ServerError: If the server ends before it answers, or does not answer in time.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    own = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # a second at every start, for blocks that no flow here has
    }
    # The port is taken here and handed on, so that nobody can come in between, and what is asked too early waits.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        port = listening.getsockname()[1]
        # Nothing is ever written to the pipe: that it ends is the message. In a session of its own the server outlives
        # Ctrl-C for as long as the run needs to say that it was stopped.
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.services.api_process", str(listening.fileno())],
            env={**os.environ, **own, **settings},
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, port, timeout)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, timeout: float) -> None:
    """Asks once: the question waits in the socket until the server takes it, and is dropped if that ends."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)  # by no proxy
    try:
        connection.request("GET", "/api/health")
        status = connection.getresponse().status
    except OSError as error:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        ended = f"ended with code {process.poll()}" if process.poll() is not None else f"says nothing for {timeout:g} s"
        raise ServerError(
            f"Prefect's API, which this run serves for itself, {ended} ({error}): look at what is printed above, or "
            "start `prefect server start` and name it in PREFECT_API_URL."
        ) from error
    finally:
        connection.close()
    if status != http.HTTPStatus.OK:
        raise ServerError(f"Prefect's API, which this run serves for itself, is not well: it answers with {status}.")


def _send_what_waits() -> None:
    """Sends queued logs and events: at exit they would wait for a server that is no longer there."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for queue in (APILogWorker, EventsWorker):
        queue.drain_all(timeout=10, at_exit=False)
