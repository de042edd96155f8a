"""What a transfer leaves behind, as commands print it. Needs neither Prefect nor MLflow: a finished run is told without them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bico.reporting.rows import Row

Stages = dict[str, dict[str, int]]
"""Per stage: how many were computed and how many were cached."""


@dataclass(frozen=True)
class Result:
    """What a transfer left behind."""

    rows: list[Row]
    outputs: dict[str, Any]
    """Files and folders written, and the ids of the runs that recorded them."""
    stages: Stages

    def to_json(self) -> dict[str, Any]:
        stages = totals(self.stages) | {"by_stage": self.stages}
        return {"rows": [row.record() for row in self.rows], "outputs": self.outputs, "stages": stages}


def totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {word: sum(c[word] for c in counts.values()) for word in ("computed", "cached")}
