"""Rows that are no transfer: what a model does as it is, and after all the training there is."""

from collections.abc import Iterable
from dataclasses import dataclass

from bico.methods.spec import Spec
from bico.reporting.rows import Row, Summary


@dataclass(frozen=True)
class Reference:
    """A row to compare with."""

    name: str
    label: str
    line: str = "--"
    """In plots, as matplotlib spells it."""

    @property
    def spec(self) -> Spec:
        return Spec.parse(self.name)


ZERO_SHOT = Reference("zero-shot", "zero-shot", ":")
"""The target as it is, by its own head."""
TARGET_PROBE = Reference("target-probe", "target probe")
"""The target as it is, by a linear probe on the calibration samples."""
SOURCE_PROBE = Reference("source-probe", "source probe")
"""The source as it is, by such a probe."""
FULL_DATA = Reference("full-data", "target probe, all data")
"""The target as it is, by a probe on all training samples."""
FINE_TUNED = Reference("fine-tuned", "fine-tuned")
"""The target, fine-tuned."""
SOURCE = Reference("source", "source (as it is)")
"""The source as it is, measured as its expert is."""
EXPERT = Reference("expert", "expert (on its own model)")
"""The source's expert itself."""

REFERENCES = {
    reference.name: reference
    for reference in (ZERO_SHOT, TARGET_PROBE, SOURCE_PROBE, FULL_DATA, FINE_TUNED, SOURCE, EXPERT)
}


def is_reference(spec: Spec) -> bool:
    return spec.name in REFERENCES


def untouched(rows: Iterable[Row | Summary]) -> Reference:
    """Returns which row of a table is the target as it is."""
    return TARGET_PROBE if any(row.method == TARGET_PROBE.spec for row in rows) else ZERO_SHOT


def start_of(row: Row, rows: Iterable[Row]) -> float | None:
    """Accuracy of the target as it is on a row's task; by a probe, on the row's own samples. None if not measured."""
    rows = list(rows)
    probes = {(r.task, r.budget.asked, r.seed): r.accuracy for r in rows if r.method == TARGET_PROBE.spec}
    plain = {r.task: r.accuracy for r in rows if r.method == ZERO_SHOT.spec}
    return probes.get((row.task, row.budget.asked, row.seed), plain.get(row.task))


def doubts(rows: Iterable[Row]) -> list[str]:
    """Returns a sentence for every task on which the expert is no better than its source was before."""
    rows = list(rows)
    before = {row.task: row.accuracy for row in rows if row.method == SOURCE.spec}
    return [
        f"The expert scores {row.accuracy:.1f} % on {row.task}, where its source as it is scores {before[row.task]:.1f} %: there "
        "is no skill in it that could be carried over. Was it fine-tuned on this task, and with these classes?"
        for row in rows
        if row.method == EXPERT.spec and row.accuracy <= before.get(row.task, -1.0)
    ]
