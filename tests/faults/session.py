"""The long session, `make faults`: every kind of fault, many times, and a table of what came of it.

    python -m tests.faults.session [--only store|runs|mutations] [--match WORD] [--repeats N] [--limit N]
        [--journal FILE] [--out FILE]

What is done is in the journal at once, so that a session that was cut off goes on where it was.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest

from tests.faults import trials
from tests.faults.catalogue import Case, cases
from tests.faults.journal import Entry, Journal, report
from tests.faults.mutations import EXPOSED_BY, mutated
from tests.faults.trials import Outcome, Trial
from tests.faults.warm import loaded
from tests.places import FolderPlace, new_bucket_place, serving_s3

COMMAND = "python -m tests.faults.session"


@dataclass(frozen=True)
class Injection:
    """One fault to come."""

    name: str
    group: str
    where: str
    run: Callable[[], Outcome]
    mutation: str = ""


def store_injections(repeats: int) -> Iterator[Injection]:
    """In a folder first: a bucket's server takes several times as long."""
    for kind in ("folder", "bucket"):
        for number, case in enumerate(cases(repeats)):
            if kind in case.places and case.possible():
                yield Injection(case.name, case.group, f"store, {kind}", partial(store_fault, case, kind, number))


def store_fault(case: Case, kind: str, seed: int) -> Outcome:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        folder = Path(name)
        if kind == "folder":
            trial = Trial(FolderPlace(str(folder / "store"), None), folder, seed)
        else:
            trial = Trial(new_bucket_place(folder, monkeypatch), folder, seed)
        try:
            case.inject(trial)
        except AssertionError as error:
            return Outcome(case.name, [], [str(error)], [], struck=True)
        outcome = trial.finish(case.name)
        return outcome.certain() if case.certain else outcome


def mutants() -> Iterator[Injection]:
    named = {case.name: case for case in cases()}
    for mutation, (kind, names) in EXPOSED_BY.items():
        for name in names:
            if named[name].possible():
                run = partial(mutant, mutation, named[name], kind)
                yield Injection(name, "mutation", f"store, {kind}", run, mutation)


def mutant(mutation: str, case: Case, kind: str) -> Outcome:
    trials.undisturbed()  # by the store as it should be
    with mutated(mutation), patch.object(trials, "PATIENCE", 30):
        try:
            return store_fault(case, kind, 0)
        except Exception as error:
            return Outcome(case.name, [], [f"{type(error).__name__}: {error}"], [], struck=True)


def injections(asked: argparse.Namespace, folder: Path, held: ExitStack) -> Iterator[Injection]:
    if asked.only in (None, "mutations"):
        yield from mutants()
    if asked.only in (None, "store"):
        yield from store_injections(asked.repeats)
    if asked.only in (None, "runs"):
        from tests.faults.run_catalogue import run_injections

        for where, case, run in run_injections(folder, held):
            yield Injection(case.name, case.group, where, run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["store", "runs", "mutations"], help="a part of it")
    parser.add_argument("--repeats", type=int, default=6, help="of the faults with a random part")
    parser.add_argument("--match", default="", help="only faults with this in their line, such as 'folder: file'")
    parser.add_argument("--limit", type=int, help="stop after so many")
    parser.add_argument("--journal", type=Path, help="where each outcome is noted; a session goes on from there")
    parser.add_argument("--out", type=Path, help="where the tables go, after each fault")
    asked = parser.parse_args()

    with ExitStack() as held:
        folder = Path(held.enter_context(TemporaryDirectory()))
        held.enter_context(loaded(folder, runs=asked.only in (None, "runs")))
        held.enter_context(serving_s3())
        journal = Journal(asked.journal or folder / "journal")
        done = {entry.number for entry in journal.entries()}
        seen: dict[str, int] = {}
        failed = 0
        for injection in islice(injections(asked, folder, held), asked.limit):
            name = f"{injection.mutation or 'whole'}: {injection.where}: {injection.name}"
            seen[name] = seen.get(name, 0) + 1
            number = f"{name} #{seen[name]}"
            if number in done or asked.match not in f"{injection.where}: {injection.name}":
                continue
            started = time.perf_counter()
            outcome = injection.run()
            seconds = time.perf_counter() - started
            journal.add(Entry(number, injection.group, injection.where, seconds, outcome, injection.mutation))
            # A mutant that goes unnoticed is what fails.
            passed = outcome.good != bool(injection.mutation)
            failed += not passed
            print(f"{time.strftime('%X')} {seconds:6.1f} s  {'ok' if passed else 'FAILED'}  {number}", flush=True)
            if not outcome.good:
                print(f"    {outcome}", flush=True)
            if asked.out:
                asked.out.write_text(report(journal.entries(), COMMAND))
        print(report(journal.entries(), COMMAND))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
