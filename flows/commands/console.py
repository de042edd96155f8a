"""What a command shows of its flows: their own lines, and of a mistake that the user can mend the one line that says so."""

import logging
import sys
from typing import TextIO

from bico.errors import BicoError

NOT_SHOWN = ("Beginning ", "Finished in state", "View at ")
"""How lines of Prefect's own begin that say nothing new, or name a page of a server that serves none and ends with the
run."""


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what standard error is by then: above the bars of a run in a terminal (`flows.commands.watch`)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def log_to_stderr() -> None:
    """Shows the flows' own lines; Prefect's lines per task go to its API, where its UI shows them."""
    from prefect.logging.configuration import setup_logging

    setup_logging()  # Prefect would do so with the first flow; once done, it leaves handlers as they are

    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: record.levelno == logging.INFO and not record.getMessage().startswith(NOT_SHOWN))
    logging.getLogger("prefect.flow_runs").addHandler(handler)
    # What loading a model has to tell; its library's own handlers would say it again.
    of_models = logging.StreamHandler(sys.stderr)
    of_models.setFormatter(logging.Formatter("note: %(message)s"))
    models = logging.getLogger("bico")
    models.handlers, models.propagate = [of_models], False
    hide_typed_errors()


def hide_typed_errors() -> None:
    """Keeps tracebacks of typed errors off the console; they stay in the runs' logs. The command prints the message."""
    for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs"):
        for handler in logging.getLogger(name).handlers:
            if type(handler).__name__ == "PrefectConsoleHandler":
                handler.addFilter(is_news)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a record says something else than that a typed error has ended a task or a flow."""
    if record.levelno < logging.ERROR:
        return True
    if record.exc_info and isinstance(record.exc_info[1], BicoError):
        return False
    text = record.getMessage()
    ended = text.startswith("Finished in state Failed(")
    return not (ended and any(f"{kind.__name__}: " in text for kind in _kinds(BicoError)))


def _kinds(root: type[BicoError]) -> list[type[BicoError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]
