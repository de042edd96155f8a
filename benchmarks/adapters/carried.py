"""One transfer of adapters, by the command line: `bico transfer` that writes adapters, as `bico rehome` does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import commands

SEEDS = [0, 1, 2]


def transfer(brief: dict[str, Any], data: Path, adapters: Iterable[Path], out: Path) -> dict[str, Any]:
    """What the command prints: rows, and outputs. Artefacts are cached, so a run that was stopped goes on where it was.

    Arguments:
        brief: What is particular of a transfer, for one task.
        data: The task's folder.
        adapters: Folders of adapters for it.
    """
    usual = {"seeds": SEEDS, "rivals": "none", "export": "none", "write": "adapter"}
    experts = [part for adapter in adapters for part in ("--expert", f"{brief['tasks'][0]}={adapter}")]
    return commands.transfer(usual | brief, out, "--data", str(data), *experts)
