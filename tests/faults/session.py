"""The long session, `make faults`: every kind of fault, many times, and a table of what came of it.

python -m tests.faults.session [--repeats N] [--limit N] [--no-runs] [--out FILE]
"""

import argparse
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.faults.catalogue import cases
from tests.faults.trials import Outcome, Trial
from tests.places import FolderPlace, new_bucket_place, serving_s3


@dataclass
class Line:
    """A line of the summary."""

    injected: int = 0
    struck: int = 0
    taken_for_finished: int = 0
    wrong: int = 0
    stale: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome, seconds: float) -> None:
        self.injected += 1
        self.struck += outcome.struck
        self.taken_for_finished += bool(outcome.taken_for_finished)
        self.wrong += bool(outcome.wrong)
        self.stale += bool(outcome.left)
        self.seconds += seconds
        if not outcome.good:
            self.failures.append(str(outcome))


def store_faults(repeats: int) -> Iterator[tuple[str, str, Outcome]]:
    """Injects the store's faults, one after the other."""
    with serving_s3():
        for number, case in enumerate(cases(repeats)):
            for kind in case.places:
                with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
                    folder = Path(name)
                    place = (
                        FolderPlace(str(folder / "store"), None)
                        if kind == "folder"
                        else new_bucket_place(folder, patch)
                    )
                    trial = Trial(place, folder, seed=number)
                    try:
                        case.inject(trial)
                        outcome = trial.finish(case.name)
                    except AssertionError as error:
                        outcome = Outcome(case.name, [], [str(error)], [], True)
                    if case.certain and not outcome.struck:
                        outcome = Outcome(case.name, [], ["the fault did not happen"], [], False)
                    yield case.group, kind, outcome


def table(lines: dict[tuple[str, str], Line]) -> str:
    rows = [
        "| fault | where | injected | struck | taken for finished | wrong results | stale state | s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = Line()
    for (group, kind), line in lines.items():
        rows.append(_row(group, kind, line))
        for name in ("injected", "struck", "taken_for_finished", "wrong", "stale", "seconds"):
            setattr(total, name, getattr(total, name) + getattr(line, name))
    return "\n".join([*rows, _row("**all**", "", total)])


def _row(group: str, kind: str, line: Line) -> str:
    return (
        f"| {group} | {kind} | {line.injected} | {line.struck} | {line.taken_for_finished} | {line.wrong} "
        f"| {line.stale} | {line.seconds:.0f} |"
    )


def report(lines: dict[tuple[str, str], Line], command: str) -> str:
    about = f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, " + ", ".join(
        f"{name} {version(name)}" for name in ("torch", "zarr", "obstore", "prefect", "distributed", "mlflow")
    )
    return (
        f"# Injected faults\n\n`{command}` ({about}).\n\n"
        "After each fault the work was run again and had to complete with the bits of an undisturbed run. *Struck*: the\n"
        "fault did something (a process died, a run failed, a file changed); a kill at a random moment may come too late.\n"
        "*Taken for finished*: a reader took an artefact for complete that was not. *Stale state*: a run that hung, or\n"
        "something unsound that was still there at the end. Buckets are on a loopback S3 server (moto).\n\n"
        f"{table(lines)}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8, help="of the faults with a random part")
    parser.add_argument("--limit", type=int, help="stop after so many")
    parser.add_argument("--no-runs", action="store_true", help="only the store's faults, not those of whole runs")
    parser.add_argument("--out", type=Path, help="write the table there")
    asked = parser.parse_args()

    lines: dict[tuple[str, str], Line] = defaultdict(Line)
    started = time.perf_counter()
    faults = islice(all_faults(asked.repeats, not asked.no_runs), asked.limit)
    for count, (group, kind, outcome) in enumerate(faults, 1):
        seconds, started = time.perf_counter() - started, time.perf_counter()
        lines[group, kind].add(outcome, seconds)
        verdict = "ok" if outcome.good else f"FAILED {outcome}"
        print(f"{count:4} {kind:7} {outcome.fault:40} {seconds:6.1f} s  {verdict}", flush=True)
    print(table(lines))
    if asked.out:
        asked.out.write_text(report(lines, " ".join(["python -m tests.faults.session", *sys.argv[1:]])))
    failures = [failure for line in lines.values() for failure in line.failures]
    print(*failures, sep="\n")
    return 1 if failures else 0


def all_faults(repeats: int, runs: bool) -> Iterator[tuple[str, str, Outcome]]:
    if runs:
        from tests.faults.runs import run_faults  # the flow and all it needs

        yield from run_faults()
    yield from store_faults(repeats)


if __name__ == "__main__":
    sys.exit(main())
