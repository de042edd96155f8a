"""What a committed number must say about itself: the machine and the versions that it was measured with."""

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bico.models.families import families

PACKAGES = ("torch", "prefect", "dask", "zarr")


def machine(packages: Sequence[str] | None = None) -> str:
    """Returns processor, cores and versions in one line.

    Arguments:
        packages: `PACKAGES`, and the libraries of model families that are installed, unless given.
    """
    if packages is None:
        theirs = (name for family in families() for name in family.distributions if _installed(name))
        packages = [*dict.fromkeys([*PACKAGES, *theirs])]
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{cpu}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def made_by(command: str, seconds: float, stages: dict[str, int]) -> list[str]:
    """Returns the lines that tell how a result was made.

    Arguments:
        stages: How many stages were `computed`, and how many `cached`.
    """
    how = f"in {seconds:.0f} s, {stages['computed']} stages computed and {stages['cached']} found in the store"
    return [f"Made by `{command}` on {date.today()} {how}.", f"Machine: {machine()}."]
