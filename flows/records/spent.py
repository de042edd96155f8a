"""What a run has cost by the time its page is written, beside what its plan said."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bico.reporting.page.record import RunRecord
from flows.planning.costs import Estimate, resident
from flows.planning.disk import bytes_told, size_of, store_bytes
from flows.planning.pace import REST, read_pace, write_pace
from flows.planning.ready import Ready
from flows.records.repeat import RECORD
from flows.records.written import told_seconds
from flows.settings import Settings
from tasks.page import write_page


def tell_cost(ready: Ready, out: Path, run: str, since: float) -> RunRecord:
    """Writes a run's page and record again, with what it has cost so far, and returns the record.

    Arguments:
        out: The run's output folder.
        run: The flow run, whose artefacts are known.
        since: When it began, in seconds since 1970: artefacts that are older were found.
    """
    text = (out / RECORD).read_text(encoding="utf-8")
    record = RunRecord.parse(text, str(out / RECORD))
    spent = told(
        time.perf_counter() - ready.begun,
        resident(),
        store_bytes(ready.settings, run, since),
        size_of(out),
    )
    expected = {} if ready.cost is None else ready.cost.by_stage
    record = replace(record, planned=planned(ready.cost), measured=spent, expected=expected)
    write_page(out, record)
    return record


def learn(settings: Settings, cost: Estimate, record: str, seconds: float) -> None:
    """Remembers what a run has taken beside its estimate, for the next one.

    Arguments:
        record: The run's record, which knows its stages.
        seconds: Since it was planned.
    """
    took = dict(RunRecord.parse(Path(record).read_text(encoding="utf-8"), record).took)
    took[REST] = seconds - sum(took.values())
    write_pace(settings.home, read_pace(settings.home).after(cost.bare(), took))


def planned(cost: Estimate | None) -> Mapping[str, str]:
    return {} if cost is None else told(cost.seconds, cost.memory, cost.store, cost.results)


def told(seconds: float, memory: int, store: int, results: int) -> dict[str, str]:
    """The quantities of a cost, for people."""
    return {
        "time": told_seconds(seconds),
        "memory at the peak": bytes_told(memory),
        "new in the store": bytes_told(store),
        "results": bytes_told(results),
    }
