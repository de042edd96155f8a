"""Imported by every Python process that has this folder on PYTHONPATH: notes whom it tries to talk to.

Python tells its audit hooks of every connection and every name to be resolved before it happens.
"""

import os
import sys

_LOG = os.environ.get("BICO_TEST_CONNECTIONS")


def _note(event: str, arguments: tuple) -> None:
    if event == "socket.connect":
        address = arguments[1]
        if not isinstance(address, tuple):  # a socket of this machine's file system
            return
        whom = str(address[0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        whom = str(arguments[0])
    else:
        return
    with open(_LOG, "a") as log:
        log.write(f"{event} {whom} {sys.argv[0]}\n")


if _LOG:
    sys.addaudithook(_note)
