"""The long session, `make faults`: every kind of fault, many times, and a table of what came of it.

    python -m tests.faults.session [--only store|runs|mutations] [--match WORD] [--repeats N] [--limit N] [--jobs N]
        [--journal FILE] [--out FILE]

What is done is in the journal at once, so that a session that was cut off goes on where it was.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.faults.injections import PARTS, injections
from tests.faults.jobs import perform
from tests.faults.journal import Entry, Journal, report
from tests.faults.warm import loaded

COMMAND = "python -m tests.faults.session"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="a part of it")
    parser.add_argument("--repeats", type=int, default=6, help="of the faults with a random part")
    parser.add_argument("--match", default="", help="only faults with this in their line, such as 'folder: file'")
    parser.add_argument("--limit", type=int, help="stop after so many")
    parser.add_argument("--jobs", type=int, default=2, help="so many at once (default: 2)")
    parser.add_argument("--journal", type=Path, help="where each outcome is noted; a session goes on from there")
    parser.add_argument("--out", type=Path, help="where the tables go, after each fault")
    asked = parser.parse_args()
    parts = (asked.only,) if asked.only else PARTS

    torch.set_num_threads(
        1
    )  # a pool of threads does not survive the forks: the first product of a child would wait for ever
    with ExitStack() as held:
        folder = Path(held.enter_context(TemporaryDirectory()))
        held.enter_context(loaded(folder, runs="runs" in parts))
        journal = Journal(asked.journal or folder / "journal")
        done = {entry.number for entry in journal.entries()}
        found = dict(injections(parts, asked.repeats, _no_bench))
        to_do = (
            name
            for name, injection in found.items()
            if name not in done and asked.match in f"{injection.where}: {injection.name}"
        )
        failed, started = 0, time.perf_counter()
        for name, seconds, outcome in perform(islice(to_do, asked.limit), asked.jobs, parts, asked.repeats, folder):
            injection = found[name]
            journal.add(Entry(name, injection.group, injection.where, seconds, outcome, injection.mutation))
            # A mutant that goes unnoticed is what fails.
            passed = outcome.good != bool(injection.mutation)
            failed += not passed
            print(f"{time.strftime('%X')} {seconds:6.1f} s  {'ok' if passed else 'FAILED'}  {name}", flush=True)
            if not outcome.good:
                print(f"    {outcome}", flush=True)
            if asked.out:
                asked.out.write_text(report(journal.entries(), COMMAND))
        print(report(journal.entries(), COMMAND))
        print(f"This session took {time.perf_counter() - started:.0f} s with {asked.jobs} jobs.")
    return 1 if failed else 0


def _no_bench():
    raise AssertionError("this process only hands out faults; jobs have the servers that whole runs talk to")


if __name__ == "__main__":
    sys.exit(main())
