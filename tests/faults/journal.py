"""What came of each fault, one line of JSON each as soon as it is known, and the tables made of them."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bico.reporting.provenance import machine
from tests.faults.mutations import MUTATIONS
from tests.faults.trials import Outcome

PACKAGES = ("torch", "zarr", "obstore", "moto", "prefect", "distributed", "mlflow")


@dataclass(frozen=True)
class Entry:
    """One fault that was injected, or one mutation of the store that a fault noticed or did not."""

    number: str
    """What tells it from others: the place, the name, and which repeat it is."""
    group: str
    where: str
    seconds: float
    outcome: Outcome
    mutation: str = ""
    """The safeguard that was taken out for it; empty if the store was whole."""


class Journal:
    """Appends to a file; what is in it already need not be done again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        if not self._path.exists():
            return []
        lines = (json.loads(line) for line in self._path.read_text().splitlines())
        return [Entry(**line | {"outcome": Outcome(**line["outcome"])}) for line in lines]

    def add(self, entry: Entry) -> None:
        line = json.dumps(asdict(entry)) + "\n"
        with self._path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def report(entries: Iterable[Entry], command: str) -> str:
    """Returns the page: all faults by kind, and what the harness has noticed of stores that were wrong on purpose."""
    entries = list(entries)
    faults = [entry for entry in entries if not entry.mutation]
    mutants = [entry for entry in entries if entry.mutation]
    seconds = sum(entry.seconds for entry in entries)
    parts = [
        "# Injected faults",
        f"Made by `{command}` on {datetime.now(UTC):%Y-%m-%d}, in {seconds:.0f} s, summed over faults that run several at once.\nMachine: {machine(PACKAGES)}.",
        "After each fault the work was run again and had to complete with the bits of an undisturbed run: every file of\n"
        "every artefact, and for whole runs the rows, the tables and what MLflow shows. *Struck*: the fault did something\n"
        "(a process died, a run failed, a file changed); a kill at a random moment may come too late. *Taken for\n"
        "finished*: before the second run, a reader took an artefact for complete that was not. *Stale state*: a run that\n"
        "hung, a lock that is still held, something unsound or, after `gc`, anything at all that is left.",
        " ".join(text for place, text in _PLACES.items() if any(place in entry.where for entry in entries)),
        _table(faults),
    ]
    if bad := [entry for entry in faults if not entry.outcome.good]:
        parts += [
            "## Failures",
            "\n".join(f"- {entry.where}: {entry.outcome}" for entry in sorted(bad, key=lambda entry: entry.number)),
        ]
    if mutants:
        parts += ["## Would it have noticed?", _MUTANTS, _mutants(mutants)]
    return "\n\n".join(parts) + "\n"


_PLACES = {
    "store": "*store* is a small pipeline on the store alone.",
    "run": "*run* is a short transfer with a Prefect server, a Dask scheduler and workers.",
    "bucket": "Buckets are on a loopback S3 server (moto).",
}
_MUTANTS = (
    "Stores that are wrong on purpose, each with one safeguard taken out (`tests/faults/mutations.py`), under the faults\n"
    "named here."
)


def _table(faults: list[Entry]) -> str:
    lines: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in faults:
        lines[entry.where, entry.group].append(entry)
    rows = [
        "| where | fault | injected | struck | taken for finished | wrong results | stale state | s each |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows += [_row(where, group, found) for (where, group), found in sorted(lines.items())]
    return "\n".join([*rows, _row("**all**", "", faults)])


def _row(where: str, group: str, found: list[Entry]) -> str:
    outcomes = [entry.outcome for entry in found]
    counts = [len(found), sum(outcome.struck for outcome in outcomes)]
    counts += [sum(bool(getattr(o, name)) for o in outcomes) for name in ("taken_for_finished", "wrong", "left")]
    cells = [where, group, *map(str, counts), f"{sum(entry.seconds for entry in found) / max(1, len(found)):.1f}"]
    return f"| {' | '.join(cells)} |"


def _mutants(mutants: list[Entry]) -> str:
    rows = ["| store | fault | noticed | as |", "| --- | --- | --- | --- |"]
    for entry in sorted(mutants, key=_by_mutation):
        outcome = entry.outcome
        rows.append(
            f"| {entry.mutation} | {entry.where}: {outcome.fault} | {'no' if outcome.good else 'yes'} "
            f"| {', '.join(_noticed(outcome))} |"
        )
    return "\n".join(rows)


def _by_mutation(entry: Entry) -> tuple[int, str]:
    """As they are listed, not as they were done: several are at once."""
    return list(MUTATIONS).index(entry.mutation), entry.number


def _noticed(outcome: Outcome) -> Iterator[str]:
    if outcome.taken_for_finished:
        yield "taken for finished"
    if outcome.wrong:
        yield "wrong results"
    if outcome.left:
        yield "stale state"
