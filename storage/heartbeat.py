"""A sign of life that is renewed while the process lives."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from bico.errors import StoreError

_LOG = logging.getLogger(__name__)
LIFETIME = timedelta(minutes=15)
"""After so long without renewal, a process counts as dead."""
_EVERY = LIFETIME / 5


class Heartbeat:
    """Calls a function every few minutes from a thread that ends with the process."""

    def __init__(self, beat: Callable[[], object]) -> None:
        self._beat = beat
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts beating, unless it does already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="store-leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(_EVERY.total_seconds())
            try:
                self._beat()
            except StoreError as error:  # the next beat may get through, and a lease outlives four that do not
                _LOG.warning("%s", error)
