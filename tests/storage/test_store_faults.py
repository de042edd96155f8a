"""The short version of `make faults`: each kind of fault at the store, once."""

from pathlib import Path

import pytest

from storage.fault_points import FaultPoint
from tests.faults.catalogue import SHORT, Case, cases
from tests.faults.injections import mutant
from tests.faults.mutations import EXPOSED_BY, MUTATIONS
from tests.faults.trials import Trial
from tests.places import FolderPlace, new_bucket_place

CHOSEN = [(case, kind) for case in cases() for kind in case.places if case.name in SHORT[kind]]


def test_the_names_of_the_short_version_exist() -> None:
    for kind, names in SHORT.items():
        assert names == {case.name for case, place in CHOSEN if place == kind}


def test_every_fault_point_of_a_commit_is_in_the_long_version() -> None:
    killed = {case.name.split()[2] for case in cases() if case.name.startswith("killed at")}
    assert killed >= set(FaultPoint) - {FaultPoint.CHOSEN}


@pytest.mark.parametrize(("case", "kind"), CHOSEN, ids=[f"{kind}: {case.name}" for case, kind in CHOSEN])
def test_after_a_fault_a_rerun_completes_with_the_same_bits(
    case: Case, kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "folder":
        place = FolderPlace(str(tmp_path / "store"), None)
    else:
        request.getfixturevalue("s3")
        place = new_bucket_place(tmp_path, monkeypatch)
    if not case.possible():
        pytest.skip("needs the right to mount a disk")
    trial = Trial(place, tmp_path, seed=0)
    case.inject(trial)
    outcome = trial.finish(case.name)
    assert outcome.good, outcome
    assert outcome.struck or not case.certain, "the fault did not happen"


@pytest.mark.parametrize("mutation", ["no manifest needed", "digests not compared", "damaged files sealed"])
def test_a_store_that_is_wrong_is_noticed(mutation: str) -> None:
    """The session tries all mutations; these are the quick ones."""
    kind, names = EXPOSED_BY[mutation]
    outcome = mutant(mutation, next(case for case in cases() if case.name == names[0]), kind)
    assert not outcome.good


def test_every_mutation_has_a_fault_that_must_notice_it() -> None:
    assert EXPOSED_BY.keys() == MUTATIONS.keys()
    there = {(case.name, kind) for case in cases() for kind in case.places}
    assert {(name, kind) for kind, names in EXPOSED_BY.values() for name in names} <= there
