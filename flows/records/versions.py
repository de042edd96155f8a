"""Which packages a run was made with: those that the project asks for, with its extras, where they are installed."""

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version


@cache
def versions() -> dict[str, str]:
    """Versions by the name of the distribution, the project's own first."""
    asked = [found[0] for line in requires("bico") or [] if (found := re.match(r"[\w.-]+", line))]
    installed: dict[str, str] = {}
    for name in ["bico", *sorted({*asked} - {"bico"}, key=str.lower)]:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:  # of an extra that is not there
            continue
    return installed
