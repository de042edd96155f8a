"""Prefect's API, for as long as the process lives that has started this one.

A run that is killed cannot stop its server; so the server watches the pipe to its parent, which the kernel closes.

python -m flows.services.api_process SOCKET, the number of a socket that listens already
"""

import os
import signal
import socket
import sys
import threading
import time
from typing import Any

GRACE = 5.0
"""Seconds in which the server may end its connections."""


def end_with_parent() -> None:
    """Returns when standard input ends, and by then this process is about to."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def wait_to_write() -> None:
    """Has every transaction on SQLite begin as one that writes.

    Prefect's ask for a slot of a concurrency limit, of every tag and task, reads before it writes, and SQLite refuses
    that at once if the recorder of task runs has written in between. Prefect's client then asks again after two seconds,
    several times in a run. One that begins as a writer waits for its turn, some milliseconds.
    """
    from prefect.server.database.configurations import AioSqliteConfiguration
    from prefect.server.database.dependencies import set_database_config
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
    from sqlalchemy.ext.asyncio import AsyncSession

    class Waiting(AioSqliteConfiguration):
        def begin_transaction(self, session: AsyncSession, with_for_update: bool = False) -> Any:
            return super().begin_transaction(session, with_for_update=True)

    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    if address.startswith("sqlite"):
        set_database_config(Waiting(connection_url=address))


def main() -> None:
    import uvicorn

    threading.Thread(target=end_with_parent, daemon=True).start()
    wait_to_write()
    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
