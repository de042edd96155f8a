"""Whoever changes what a stage computes raises its version: else the store would go on serving the old results."""

import json
from copy import deepcopy

import pytest

from tests.pipeline import golden
from tests.pipeline.golden import PINNED, VERSIONS, changes, current, named_stages, pin, version_constants

CURE = "If that is meant, raise VERSION of the first stage that changed and pin anew: python -m tests.pipeline.golden"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return current(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", VERSIONS)
def test_a_stage_gives_what_is_pinned_beside_its_version(stage: str, found: dict) -> None:
    pinned = json.loads(PINNED.read_text())
    differ = changes({stage: pinned[stage]}, {stage: found[stage]})
    assert not differ, f"{differ[0]} changed. {CURE}"


def test_every_stage_and_every_version_is_pinned() -> None:
    assert set(VERSIONS) == named_stages() == set(json.loads(PINNED.read_text()))
    assert {(module.__name__.removeprefix("tasks."), name) for module, name in VERSIONS.values()} == version_constants()


def test_other_numbers_are_pinned_under_another_version_only() -> None:
    old = {"evaluate": {"version": 1, "numbers": {"bare, accuracy": 50.0}}}
    new = deepcopy(old)
    new["evaluate"]["numbers"]["bare, accuracy"] = 60.0
    with pytest.raises(ValueError, match="evaluate gives other numbers: raise VERSION in tasks/evaluate.py first"):
        pin(old, new)
    new["evaluate"]["version"] = 2
    assert pin(old, new) == new and pin({}, old) == old
    assert changes(old, new) == ["evaluate (version 1 → 2): bare, accuracy 50.0 → 60.0"] and changes(old, old) == []


def test_what_follows_a_raised_version_may_change_with_it() -> None:
    old = {name: {"version": 1, "numbers": {"norm": 1.0}} for name in ("fine-tune", "transfer", "class-distances")}
    new = {name: {"version": 1 + (name == "fine-tune"), "numbers": {"norm": 2.0}} for name in ("fine-tune", "transfer")}
    assert pin(old, new) == new
    with pytest.raises(ValueError, match="class-distances gives other numbers: raise VERSION in tasks/distances.py"):
        pin(old, new | {"class-distances": {"version": 1, "numbers": {"norm": 2.0}}})


def test_a_stage_that_is_not_named_where_its_key_is_made_is_an_error(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "TASKS", tmp_path)
    (tmp_path / "new.py").write_text('VERSION = 1\nkey = artefact_key("brand-new", VERSION)\n')
    assert "brand-new" in named_stages() and version_constants() == {("new", "VERSION")}
    (tmp_path / "new.py").write_text("key = artefact_key(stage, 1)\n")
    with pytest.raises(LookupError, match="new.py:1: which stage is stage"):
        named_stages()
