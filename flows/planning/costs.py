"""What a run costs: the quantities that a plan tells and that a run has spent."""

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows.planning.pace import REST


@dataclass(frozen=True)
class Estimate:
    """What a run will cost."""

    steps: tuple[tuple[str, float], ...]
    """Seconds of every stage that will be computed, in order, by name."""
    rest: float
    """Seconds of all else that comes after the plan: servers, records, files."""
    seconds: float
    """Of all of it, with what had passed when it was planned."""
    passes: int
    """Samples that go through a model, forward and backward counted once each."""
    memory: int
    """Bytes at the peak, of this process."""
    store: int
    """Bytes that the store will grow by."""
    results: int
    """Bytes that are written for people, with MLflow's copy."""
    pace: Mapping[str, float] = field(default_factory=dict)
    """By what the times were multiplied, by stage (`flows.planning.pace`)."""
    passing: int = 0
    """Bytes on the disk that go again, at their peak, where they are worth telling: of a run block by block."""

    @property
    def by_stage(self) -> dict[str, float]:
        """Seconds of the stages that will be computed, by name."""
        found: dict[str, float] = {}
        for stage, seconds in self.steps:
            found[stage] = found.get(stage, 0.0) + seconds
        return found

    def bare(self) -> dict[str, float]:
        """Seconds before any pace, by stage, and of all else that comes after the plan."""
        stages, rest = self.by_stage, self.rest
        return {stage: seconds / self.pace.get(stage, 1.0) for stage, seconds in {**stages, REST: rest}.items()}


STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes that this process has held at most, so far."""
    if (found := _status("VmHWM")) is not None:  # what else tells it on Linux begins with what the parent process held
        return found
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held() -> int:
    """Bytes that this process holds now; where the system does not tell, at most so far."""
    return resident() if (found := _status("VmRSS")) is None else found


def _status(name: str) -> int | None:
    if not STATUS.exists():
        return None
    line = next((one for one in STATUS.read_text().splitlines() if one.startswith(f"{name}:")), None)
    return None if line is None else 1024 * int(line.split()[1])
