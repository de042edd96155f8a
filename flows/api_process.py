"""Prefect's API, for as long as the process lives that has started this one.

A run that is killed cannot stop its server; so the server watches the pipe to its parent, which the kernel closes.

python -m flows.api_process PORT
"""

import os
import signal
import sys
import threading
import time

GRACE = 5.0
"""Seconds in which the server may end its connections."""


def end_with_parent() -> None:
    """Returns when standard input ends, and by then this process is about to."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    import uvicorn

    threading.Thread(target=end_with_parent, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main()
