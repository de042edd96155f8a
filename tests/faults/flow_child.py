"""A short transfer in a process of its own, with a fault in it, in a Dask worker, or in the Prefect server.

    python -m tests.faults.flow_child CONFIG HOME ANSWER

This module is also what Dask's workers load before they work (`distributed.worker.preload`).
"""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from storage.boundaries import Boundary, intercepted
from tests.faults.work import Fault, Injector

FAULT = "BICO_TEST_FAULT"
_HELD = ExitStack()  # a worker's interceptor stays for as long as the worker


class Once(Injector):
    """Strikes once for all processes: a task that is run again in another worker gets through."""

    def __init__(self, fault: Fault, token: Path) -> None:
        super().__init__(fault)
        self._token = token

    def strike(self, action: str) -> None:
        try:
            self._token.touch(exist_ok=False)
        except FileExistsError:
            return
        if action == "kill the server":
            for child in psutil.Process().children(recursive=True):
                if any("prefect.server.api.server" in word for word in child.cmdline()):
                    child.kill()
        else:
            super().strike(action)


def injector(role: str) -> Once | None:
    """The interceptor that the environment asks for in a role, if any."""
    asked = json.loads(os.environ.get(FAULT, "{}"))
    if asked.get("role") != role:
        return None
    return Once(Fault(Boundary(asked["boundary"]), asked["nth"], asked["action"]), Path(asked["token"]))


def dask_setup(worker: Any) -> None:
    """Called by Dask in each new worker."""
    if found := injector("worker"):
        _HELD.enter_context(intercepted(found))


def main(config: str, home: str, answer: str) -> None:
    from flows.config import Settings, TransferConfig
    from flows.server import prefect_api
    from flows.transfer import transfer

    settings = Settings.from_environment(home=Path(home), device="cpu")
    with ExitStack() as stack:
        stack.enter_context(prefect_api())
        if found := injector("flow"):
            stack.enter_context(intercepted(found))
        result = transfer(TransferConfig(**json.loads(Path(config).read_text())), settings)
        Path(answer).write_text(json.dumps(result.to_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
