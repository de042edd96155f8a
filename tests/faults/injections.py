"""What a session injects: the faults of the catalogues, each ready to be run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from tests.faults import trials
from tests.faults.catalogue import Case, cases
from tests.faults.mutations import EXPOSED_BY, mutated
from tests.faults.trials import Outcome, Trial
from tests.places import FolderPlace, new_bucket_place

if TYPE_CHECKING:
    from tests.faults.runs import Bench  # loads Prefect and MLflow

PARTS = ("mutations", "store", "runs")


@dataclass(frozen=True)
class Injection:
    """One fault to come."""

    name: str
    group: str
    where: str
    run: Callable[[], Outcome]
    mutation: str = ""


def injections(parts: tuple[str, ...], repeats: int, bench: Callable[[], "Bench"]) -> Iterator[tuple[str, Injection]]:
    """All faults of some parts, each with a name of its own; the same in every process that asks.

    Arguments:
        repeats: Of the faults with a random part.
        bench: Gives the servers of whole runs; called when the first of these faults is run.
    """
    seen: dict[str, int] = {}
    for injection in _injections(parts, repeats, bench):
        name = f"{injection.mutation or 'whole'}: {injection.where}: {injection.name}"
        seen[name] = seen.get(name, 0) + 1
        yield f"{name} #{seen[name]}", injection


def _injections(parts: tuple[str, ...], repeats: int, bench: Callable[[], "Bench"]) -> Iterator[Injection]:
    if "mutations" in parts:
        yield from mutants()
    if "store" in parts:
        yield from store_injections(repeats)
    if "runs" in parts:
        from tests.faults.run_catalogue import run_injections

        for where, case, run in run_injections(bench):
            yield Injection(case.name, case.group, where, run)


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
        except (AttributeError, ImportError, NameError, TypeError):
            raise  # a mistake of the harness must not pass for a store that was caught
        except Exception as error:
            return Outcome(case.name, [], [f"{type(error).__name__}: {error}"], [], struck=True)
