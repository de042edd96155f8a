"""Everything that can go wrong by the user's hand, as one tree of typed errors.

    BicoError
    ├── ConfigError            a setting that does not exist or has no meaning
    ├── UnknownModelError      ├── UnknownTaskError      ├── UnknownMethodError
    ├── NotEnoughSamplesError  more calibration samples asked for than the data holds
    ├── DataError              a data set that cannot be had, or is not what its name says
    ├── CheckpointError        a file that is missing, damaged, non-finite or of another architecture
    ├── ShapeError             tensors that do not fit: image size, site shapes
    ├── CalibrationError       a signal that was never seen, or is zero or non-finite; scores that are not finite
    ├── MethodError            a method that cannot serve this pair of models
    ├── StoreError             the artefact store cannot be read or written
    │   └── ConnectionLostError    ... because it, or MLflow, does not answer: worth another try
    ├── ClusterError           the Dask cluster does no work
    ├── ServerError            Prefect's API does not start
    └── OutputError            the results cannot be written

Each message is one line: what, where, why, and what to do. The command line prints it and exits with code 2.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

_CREDENTIALS = re.compile(r"(://)[^/@\s'\"]+@")


def masked(text: str) -> str:
    """Returns a text with users and passwords of its addresses hidden.

    Example:
        >>> masked("http://user:secret@host/x and s3://bucket/y")
        'http://***@host/x and s3://bucket/y'
    """
    return _CREDENTIALS.sub(r"\1***@", text)


class BicoError(Exception):
    """A mistake that the user can mend; the message says how, and shows no password."""

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))


class ConfigError(BicoError, ValueError):
    pass


class UnknownModelError(BicoError, LookupError):
    pass


class UnknownTaskError(BicoError, LookupError):
    pass


class UnknownMethodError(BicoError, LookupError):
    pass


class NotEnoughSamplesError(BicoError, ValueError):
    pass


class DataError(BicoError):
    pass


class CheckpointError(BicoError):
    pass


class ShapeError(BicoError, ValueError):
    pass


class CalibrationError(BicoError):
    pass


class MethodError(BicoError):
    pass


class StoreError(BicoError):
    pass


class ConnectionLostError(StoreError):
    pass


class ClusterError(BicoError):
    pass


class ServerError(BicoError):
    pass


class OutputError(BicoError):
    pass


def at_home(path: Path) -> Path:
    """Returns a path with `~` or `~user` at its beginning replaced by the home folder.

    Raises:
        ConfigError: If there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: {one_line(error)}: give the path without ~.") from error


def one_line(error: Exception, limit: int = 300) -> str:
    r"""Returns the beginning of what an error says, without line breaks.

    Example:
        >>> one_line(ValueError("no\n  such file"), limit=7)
        'no such'
    """
    return " ".join(str(error).split())[:limit]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the end of an error message: the valid name most like `name`, and all of them.

    Example:
        >>> nearest("bicoo", ["naive", "bico"])
        "did you mean 'bico'? Valid: bico, naive."
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."
