"""Several artefacts of one pass: all or none, and nobody waits in a circle."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bico.errors import StoreError
from storage.artefacts import ArtefactStore
from tests.places import KEY, Place


def build_all(calls: list[set[str]]) -> Callable[[dict[str, Path]], None]:
    def build(folders: dict[str, Path]) -> None:
        calls.append(set(folders))
        for key, folder in folders.items():
            (folder / "data").write_text(key)

    return build


def test_many_are_built_in_one_pass(store: ArtefactStore) -> None:
    calls: list[set[str]] = []
    first = store.get_or_create_many(["b", "a", "c", "a"], build_all(calls))
    assert {key: hit for key, (_, hit) in first.items()} == {"a": False, "b": False, "c": False}
    assert list(first) == ["b", "a", "c"]
    assert calls == [{"a", "b", "c"}]
    assert all((store.folder(key) / "data").read_text() == key for key in first)

    store.discard("b")
    again = store.get_or_create_many(["a", "b", "c"], build_all(calls))
    assert {key: hit for key, (_, hit) in again.items()} == {"a": True, "b": False, "c": True}
    assert calls[1:] == [{"b"}]  # only what is missing

    store.get_or_create_many(["a", "b", "c"], build_all(calls))
    assert len(calls) == 2
    assert store.get_or_create_many([], build_all(calls)) == {}


def test_a_fault_in_one_of_many_commits_none(place: Place, store: ArtefactStore) -> None:
    def forget_b(folders: dict[str, Path]) -> None:
        (folders["a"] / "data").write_text("a")

    with pytest.raises(StoreError, match="Artefact b is empty"):
        store.get_or_create_many(["a", "b"], forget_b)
    assert not store.is_complete("a")
    assert place.leftovers() == []


def test_many_in_opposite_orders_do_not_wait_in_a_circle(store: ArtefactStore) -> None:
    calls: list[set[str]] = []
    slow = build_all(calls)

    def build(folders: dict[str, Path]) -> None:
        time.sleep(0.02)
        slow(folders)

    keys = [f"key-{i}" for i in range(6)]
    threads = [
        threading.Thread(target=store.get_or_create_many, args=(order, build), daemon=True)
        for order in (keys, keys[::-1], keys[3:] + keys[:3], keys[1:4])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    built = [key for call in calls for key in call]
    assert sorted(built) == keys  # each exactly once


def test_sweep_spares_a_builder_at_work(place: Place, store: ArtefactStore) -> None:
    def build(folder: Path) -> None:
        (folder / "data").write_bytes(b"x")
        os.utime(folder, (0, 0))  # a training of several days
        place.open()
        assert folder.exists()

    store.get_or_create(KEY, build)
    assert store.fault(KEY, again=True) is None


def test_sweep_leaves_strangers_alone(place: Place, store: ArtefactStore) -> None:
    stranger = place.bench / "tmp" / ".not-ours"
    stranger.mkdir()
    os.utime(stranger, (0, 0))
    place.open()
    assert stranger.exists()
