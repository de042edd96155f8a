"""A Prefect API for runs with nothing started by hand."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def prefect_api() -> Iterator[str]:
    """Serves Prefect's API from a process of its own for the time of the context, unless one is configured.

    Prefect could start one by itself, but then every Dask worker would start another. The database is the one of
    `prefect server start`, so runs show there afterwards.

    Yields:
        The API's address.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        yield configured
        return
    server = SubprocessASGIServer()
    server.start(timeout=120)
    try:
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            try:
                yield server.api_url
            finally:
                _send_what_waits()
    finally:
        server.stop()


def _send_what_waits() -> None:
    """Sends queued logs and events: at exit they would wait for a server that is no longer there."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for queue in (APILogWorker, EventsWorker):
        queue.drain_all(timeout=10, at_exit=False)
