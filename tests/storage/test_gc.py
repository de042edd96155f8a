"""What may be deleted, and what never."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from bico.errors import StoreError
from storage import bucket as bucket_module
from storage import gc
from storage.artefacts import ArtefactStore
from storage.fault_points import FaultPoint, intercepted
from storage.leases import LEASES
from storage.manifest import MANIFEST
from tests.places import SOURCES, Place, new_bucket_place


def fill(place: Place, *keys: str) -> ArtefactStore:
    """Makes artefacts with a store whose leases end with it, and returns another."""
    store = place.open()
    for key in keys:
        store.get_or_create(key, lambda folder, key=key: (folder / "data").write_text(key))
    return store


def forget_leases(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every process that has leased something were dead; in a folder, those of this one end with their stores."""
    if place.staging is not None:
        monkeypatch.setattr(bucket_module, "LIFETIME", timedelta(seconds=-1))


def keys(found: list[gc.StoredArtefact]) -> list[str]:
    return [artefact.key for artefact in found]


def test_a_listing_tells_size_stage_use_and_runs(place: Place) -> None:
    store = fill(place, "maps-1", "transfer-22")
    gc.note_run(store, "r1", ["maps-1"])
    gc.note_run(store, "r2", ["maps-1", "gone-1"])
    first, second = gc.inventory(store)
    assert (first.key, first.stage, first.size, first.runs) == ("maps-1", "maps", 6, ("r1", "r2"))
    assert (second.key, second.stage, second.size, second.runs) == ("transfer-22", "transfer", 11, ())
    assert first.in_use and abs(time.time() - first.created) < 60
    place.write("maps-1", MANIFEST, b"{")
    assert next(gc.inventory(store)).size == 0


def test_verify_finds_what_is_damaged_and_removes_it_if_asked(place: Place) -> None:
    store = fill(place, "a-1", "b-1")
    assert gc.verify(store) == (2, {})
    place.write("a-1", "data", b"A-1")
    assert gc.verify(store) == (2, {"a-1": "data is not what was written"})
    assert gc.verify(place.open(), repair=True)[1].keys() == {"a-1"}
    assert place.is_empty("a-1")
    assert gc.verify(place.open()) == (1, {})


def test_what_a_living_store_uses_stays(place: Place) -> None:
    store = fill(place, "a-1")
    done = gc.collect(place.open(), older_than=0)
    assert (keys(done.deleted), keys(done.in_use)) == ([], ["a-1"])
    assert store.is_complete("a-1")


def test_what_nobody_uses_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place, "a-1")
    forget_leases(place, monkeypatch)
    done = gc.collect(place.open(), older_than=0)
    assert (keys(done.deleted), done.size) == (["a-1"], 3)
    assert place.is_empty("a-1")
    assert place.leftovers() == []


def test_a_lease_made_after_the_choice_is_respected(place: Place) -> None:
    """The race: gc has listed what is unused, and a run asks for it before gc gets there."""
    fill(place, "a-1")
    users = []

    def use(point: FaultPoint, key: str) -> None:
        if point is FaultPoint.CHOSEN:
            dead.undo()
            user = place.open()
            assert user.is_complete(key)
            users.append(user)

    with pytest.MonkeyPatch.context() as dead, intercepted(use):
        forget_leases(place, dead)
        collector = place.open()
        done = gc.collect(collector, older_than=0)
    assert (keys(done.deleted), keys(done.in_use)) == ([], ["a-1"])
    assert (users[0].folder("a-1") / "data").read_text() == "a-1"


def test_a_bucket_puts_back_what_was_leased_while_it_was_taken_away(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_bucket_place(tmp_path, monkeypatch)
    store = fill(place, "a-1")
    answers = iter([set(), {"a-1"}])
    monkeypatch.setattr(store.backend, "leased", lambda: next(answers))
    assert not store.backend.remove("a-1", unless_leased=True)
    assert store.fault("a-1", again=True) is None


HOLDER = """
import sys, time
from pathlib import Path
from storage.artefacts import ArtefactStore
store = ArtefactStore(sys.argv[1])
store.get_or_create("a-1", lambda folder: (folder / "data").write_text("x"))
print("leased", flush=True)
time.sleep(60)
"""


def test_the_lease_of_a_killed_process_ends_with_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "leased\n"
    collector = ArtefactStore(tmp_path)
    assert keys(gc.collect(collector, older_than=0).in_use) == ["a-1"]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert keys(gc.collect(collector, older_than=0).deleted) == ["a-1"]
    assert [path.name for path in (tmp_path / LEASES).iterdir()] == [".gate"]


def test_choices_combine(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(place, "shared-1", "first-1", "second-1", "orphan-1", "old-1")
    gc.note_run(store, "r1", ["shared-1", "first-1"])
    gc.note_run(store, "r2", ["shared-1", "second-1"])
    place.change_manifest("old-1", lambda m: m.update(created=m["created"] - 40 * 86400))
    del store
    forget_leases(place, monkeypatch)
    collector = place.open()

    def chosen(**how: object) -> list[str]:
        return keys(gc.collect(collector, dry_run=True, **how).deleted)

    assert chosen(older_than=30 * 86400) == ["old-1"]
    assert chosen(keep_reachable=True) == ["old-1"]  # the orphan is young: its run may not have left its note yet
    assert chosen(keep_reachable=True, older_than=0) == ["old-1", "orphan-1"]
    assert chosen(run="r1") == ["first-1"]
    assert chosen(run="r1", older_than=3600) == []
    assert len(list(collector.backend.listed())) == 5  # a dry run deletes nothing

    assert keys(gc.collect(collector, run="r1").deleted) == ["first-1"]
    assert set(gc.runs(collector)) == {"r2"}
    assert chosen(run="r2") == ["second-1", "shared-1"]


def test_what_cannot_be_chosen_is_refused(place: Place) -> None:
    store = fill(place, "a-1")
    with pytest.raises(StoreError, match="give an age, a run, or keep-reachable"):
        gc.collect(store)
    gc.note_run(store, "run-one", ["a-1"])
    with pytest.raises(StoreError, match="'run-two' has left no note.*did you mean 'run-one'"):
        gc.collect(store, run="run-two")
    store.backend.write_note("run-broken", b"{")
    with pytest.raises(StoreError, match="Note run-broken of .* is damaged"):
        gc.collect(store, keep_reachable=True)


def test_a_note_lists_what_was_asked_for_meanwhile(place: Place) -> None:
    store = fill(place, "before-1")
    with store.uses() as used:
        fill_again = store.get_or_create_many(
            ["a-1", "b-1"], lambda folders: [(folder / "data").write_text("x") for folder in folders.values()]
        )
        store.is_complete("c-1")
    assert len(fill_again) == 2
    assert used == {"a-1", "b-1", "c-1"}
    gc.note_run(store, "r", used, {"flow": "transfer"})
    note = gc.runs(place.open())["r"]
    assert note["keys"] == ["a-1", "b-1", "c-1"] and note["about"] == {"flow": "transfer"}
    assert json.dumps(note)


def test_files_that_no_manifest_names_are_swept_from_a_bucket_after_a_day(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_bucket_place(tmp_path, monkeypatch)
    store = fill(place, "a-1")
    bucket_module.obstore.put(place.client, "data/a-1/lost/data", b"x")
    bucket_module.obstore.put(place.client, "data/b-1/lost/data", b"x")
    store.backend.sweep_lost()
    assert len(place.objects("data/")) == 3  # young: somebody may be uploading
    monkeypatch.setattr(bucket_module, "STALE_SECONDS", -1)
    store.backend.sweep_lost()
    assert len(place.objects("data/")) == 1
    assert store.fault("a-1", again=True) is None


def test_copies_of_what_another_machine_has_deleted_are_swept(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_bucket_place(tmp_path, monkeypatch)
    store = fill(place, "a-1", "b-1", "c-1")
    other = ArtefactStore(place.url, staging=tmp_path / "other machine")
    other.discard("a-1")
    other.discard("b-1")
    monkeypatch.setattr(bucket_module, "STALE_SECONDS", -1)

    def copies() -> set[str]:
        store.backend.sweep_lost()
        return {path.name.rpartition(".")[0] for path in (store.backend.staging / "copies").iterdir()}

    monkeypatch.setattr(store.backend, "leased", lambda: {"b-1"})  # somebody may be reading it
    assert copies() == {"b-1", "c-1"}
    monkeypatch.setattr(store.backend, "leased", set)
    assert copies() == {"c-1"}
    assert store.fault("c-1", again=True) is None


def locks(place: Place) -> list[str]:
    return sorted(path.name for path in (place.bench / "locks").iterdir())


def test_the_locks_of_what_is_gone_go_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(place, "a-1", "b-1")
    store.folder("a-1")
    store.discard("b-1")
    assert {"a-1", "b-1"} <= set(locks(place))
    del store
    collector = place.open()
    gc.collect(collector, older_than=3600)
    assert [name for name in locks(place) if not name.endswith(".copy")] == ["a-1"]
    forget_leases(place, monkeypatch)
    gc.collect(collector, older_than=0)
    assert locks(place) == []


def test_the_lock_of_a_builder_at_work_stays(place: Place) -> None:
    collector = place.open()

    def build(folder: Path) -> None:
        gc.collect(collector, older_than=0)
        assert locks(place) == ["a-1"]
        (folder / "data").write_text("x")

    place.open().get_or_create("a-1", build)
