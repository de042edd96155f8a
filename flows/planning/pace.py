"""What runs on this machine have taken beside their estimates, kept in the home folder, so that the next estimate is better.

An estimate is made of what one batch takes; what stands around the batches (Prefect, MLflow, the disk, a decomposition's
constant) differs from machine to machine, and is learnt here as one ratio per stage.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

FILE = "pace.json"
REST = "rest"
"""Stands for all that is no stage: the start, records, and what is written for people."""
FORGET = 0.5
"""What earlier runs weigh beside the last one."""
WIDEST = 8.0
"""No ratio is trusted further from 1: such a run was stopped, or something else had the machine."""
LEAST = 0.5
"""Seconds that a stage must have taken for its ratio to say anything."""


@dataclass(frozen=True)
class Pace:
    """Seconds that were expected and taken, by stage."""

    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, stage: str) -> float:
        """By what an estimate of a stage is to be multiplied; 1 where nothing is known.

        Example:
            >>> pace = Pace({"evaluate": (2.0, 6.0), "probe": (0.1, 0.2)})
            >>> pace.of("evaluate"), pace.of("probe"), pace.of("fine-tune")
            (3.0, 1.0, 1.0)
        """
        expected, took = self.seen.get(stage, (0.0, 0.0))
        if min(expected, took) <= 0 or max(expected, took) < LEAST:
            return 1.0
        return min(max(took / expected, 1 / WIDEST), WIDEST)

    def after(self, expected: Mapping[str, float], took: Mapping[str, float]) -> "Pace":
        """With one more run.

        Arguments:
            expected: Seconds by stage, before any ratio.

        Example:
            >>> Pace({"probe": (2.0, 2.0)}).after({"probe": 1.0}, {"probe": 3.0}).seen
            {'probe': (2.0, 4.0)}
        """
        seen = dict(self.seen)
        for stage in expected.keys() & took.keys():
            before = seen.get(stage, (0.0, 0.0))
            seen[stage] = FORGET * before[0] + expected[stage], FORGET * before[1] + took[stage]
        return Pace(seen)


def read_pace(home: Path) -> Pace:
    """What is known; nothing of a file that cannot be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads((home / FILE).read_text(encoding="utf-8"))
        return Pace({str(stage): (float(expected), float(took)) for stage, (expected, took) in found.items()})
    return Pace()


def write_pace(home: Path, pace: Pace) -> None:
    """Replaces what is known. A pace spares surprises and no more: what cannot be written is left."""
    with suppress(OSError):
        unfinished = home / f".{FILE}.{os.getpid()}"
        unfinished.write_text(json.dumps(pace.seen, indent=1), encoding="utf-8")
        unfinished.replace(home / FILE)
