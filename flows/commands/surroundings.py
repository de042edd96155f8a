"""What a process may find around it: proxies, a home folder that cannot be written, a terminal that knows no Unicode.

Needs nothing but Python: all of it has to be settled before the libraries that look at it are imported.
"""

import codecs
import contextlib
import importlib.util
import os
import sys
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
"""When the command began, as nearly as can be told from inside."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
FOLDERS = {
    "PREFECT_HOME": (".prefect", "prefect"),
    "HF_HOME": (".cache/huggingface", "huggingface"),
    "MPLCONFIGDIR": (".config/matplotlib", "matplotlib"),
    "XDG_CACHE_HOME": (".cache", "cache"),
}
"""Variables, the folders under the user's home that they stand for, and those under BiCo's where the home is read-only."""
PLAIN = {"±": "+-", "→": "->", "−": "-", "–": "-", "—": "-", "…": "...", "α": "alpha", "λ": "lambda", "τ": "tau",
         "·": "*", "×": "x", "≥": ">=", "≤": "<=", "‖": "||", "†": "+", "│": "|", "─": "-", "━": "-", "•": "*"}  # fmt: skip
"""How characters are written where they cannot be."""


def prepare() -> None:
    """Settles what libraries read from the environment; whatever the user has set stays."""
    reach_loopback_directly()
    leave_read_only_home()


def reach_loopback_directly() -> None:
    """Keeps what is meant for this machine out of proxies: Prefect, Dask and MLflow talk to themselves over loopback."""
    if not _set(PROXIES):
        return
    names = ("no_proxy", "NO_PROXY")  # of two that differ, libraries read one or the other
    hosts = [host.strip() for name in names for host in os.environ.get(name, "").split(",") if host.strip()]
    os.environ |= dict.fromkeys(names, ",".join(dict.fromkeys([*hosts, *LOOPBACK])))
    # A client that cannot speak SOCKS fails when it is made, whatever it is about to ask, and so would reach nothing.
    socks = [name for name in _set(PROXIES) if os.environ[name].startswith("socks")]
    if socks and importlib.util.find_spec("socksio") is None:
        for name in socks:
            del os.environ[name]
        print(
            f"warning: {', '.join(socks)} names a SOCKS proxy, and nothing here speaks SOCKS: it is left aside. "
            "pip install 'httpx[socks]' to use it.",
            file=sys.stderr,
        )


def _set(names: Iterable[str]) -> list[str]:
    return [spelt for name in names for spelt in (name, name.upper()) if os.environ.get(spelt)]


def leave_read_only_home() -> None:
    """Sends what libraries keep under the home folder to BiCo's own folder where the home cannot be written."""
    own = Path(os.environ.get("BICO_HOME") or ".bico").expanduser().absolute()
    home = Path(os.environ.get("HOME") or "/")
    for variable, (usual, instead) in FOLDERS.items():
        if variable in os.environ or is_writable(home / usual):
            continue
        os.environ[variable] = str(own / instead)
        with contextlib.suppress(OSError):  # whether BiCo's folder can be written is told before any work
            (own / instead).mkdir(parents=True, exist_ok=True)


def is_writable(folder: Path) -> bool:
    """Whether a folder can be written, or made where it is not there."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def write_what_can_be_written(*streams: Any) -> None:
    """Has streams of few characters write plain ones for those they lack (+- for ±), rather than fail at the end of a run."""
    codecs.register_error("bico-plain", _plain)
    for stream in streams:
        if hasattr(stream, "reconfigure") and not _speaks_unicode(stream.encoding):
            stream.reconfigure(errors="bico-plain")


def _speaks_unicode(encoding: str | None) -> bool:
    try:
        "".join(PLAIN).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(plain, error.object[error.start : error.end])), error.end


def plain(character: str) -> str:
    """Returns a character as ASCII.

    Example:
        >>> plain("±"), plain("é"), plain("漢")
        ('+-', 'e', '?')
    """
    if character in PLAIN:
        return PLAIN[character]
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
