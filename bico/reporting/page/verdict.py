"""What came out of a run, in a sentence and in few numbers."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bico.methods.variant import carries_expert
from bico.reporting.names import label_of, short_name
from bico.reporting.page.record import RunRecord
from bico.reporting.references import FINE_TUNED, start_of, untouched
from bico.reporting.rows import Row, Summary, summarise


@dataclass(frozen=True)
class Outcome:
    """What the verdict is about: of the models that were written, else of the best transfer; averages over the tasks, in
    percent.
    """

    what: str
    """The model, or the method."""
    after: float
    before: float | None
    """Of the target as it is; None if it was not measured."""
    fine_tuned: float | None
    """Of the fine-tuned target; None likewise."""
    tasks: tuple[str, ...]
    written: bool
    """Whether it is of models that were written."""
    doubted: tuple[str, ...] = ()
    """Tasks on which no model was better than the target by the held-out samples."""

    @property
    def gain(self) -> float | None:
        return None if self.before is None else self.after - self.before

    @property
    def closed(self) -> float | None:
        """Of the gap between the untouched and the fine-tuned target, the share that is closed, in percent."""
        if self.before is None or self.fine_tuned is None or self.fine_tuned <= self.before:
            return None
        return 100 * (self.after - self.before) / (self.fine_tuned - self.before)


def outcome_of(record: RunRecord) -> Outcome | None:
    """The outcome of a run; None if nothing was done to the target."""
    if record.choices:
        measured = {row.cell: row for row in record.rows}
        chosen = [measured[choice.cell] for choice in record.choices if choice.cell in measured]
        if chosen:
            doubted = tuple(choice.cell.task for choice in record.choices if not choice.gains)
            specs = list(dict.fromkeys(label_of(row.method) for row in chosen))
            name = specs[0] if len(specs) == 1 else "the best of each task"
            return _outcome(name, chosen, record, written=True, doubted=doubted)
    best = best_transfer(record)
    if best is None:
        return None
    rows = [row for row in record.rows if (row.method, row.budget) == (best.method, best.budget)]
    count = f", {best.budget}" if best.budget else ""
    return _outcome(label_of(best.method) + count, rows, record, written=False)


def best_transfer(record: RunRecord) -> Summary | None:
    """Of transfers, the best on average over all tasks."""
    tasks = {row.task for row in record.rows}
    found = [s for s in summarise(record.rows) if carries_expert(s.method) and set(s.per_task) == tasks]
    return max(found, key=lambda s: s.average.mean, default=None)


def _outcome(
    what: str, rows: Sequence[Row], record: RunRecord, written: bool, doubted: tuple[str, ...] = ()
) -> Outcome:
    tasks = tuple(dict.fromkeys(row.task for row in rows))
    starts = [start_of(row, record.rows) for row in rows]
    known = [start for start in starts if start is not None]
    tuned = {row.task: row.accuracy for row in record.rows if row.method == FINE_TUNED.spec}
    return Outcome(
        what,
        statistics.fmean(row.accuracy for row in rows),
        statistics.fmean(known) if len(known) == len(rows) else None,
        statistics.fmean(tuned[task] for task in tasks) if all(task in tuned for task in tasks) else None,
        tasks,
        written,
        doubted,
    )


def verdict(record: RunRecord) -> str:
    """One or two sentences: what the target has gained, and where it has gained nothing."""
    target, found = short_name(record.target), outcome_of(record)
    if found is None:
        return f"Nothing was carried over to {target}."
    where = found.tasks[0] if len(found.tasks) == 1 else f"average over {len(found.tasks)} tasks"
    if found.before is None or found.gain is None:
        return f"{target} scores {found.after:.1f} % ({where}) with {found.what}."
    if found.gain > 0:
        said = f"{target} gains {found.gain:.1f} points by {found.what}: {found.before:.1f}\u00a0→\u00a0{found.after:.1f}\u00a0% ({where})."
    else:
        said = (
            f"Nothing is gained: {found.what} brings {target} from {found.before:.1f} to {found.after:.1f} % ({where})."
        )
    if found.doubted:
        said += f" On {', '.join(found.doubted)} no model was better than the target as it is: use the target there."
    return said


def start_label(record: RunRecord) -> str:
    """What the target as it is is called in the table."""
    return untouched(record.rows).label
