"""Locks let one in at a time, also when the file that is waited for is deleted meanwhile."""

import threading
import time
from pathlib import Path

from storage.locks import locked, remove_free


def test_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "a", wait=False) as second:
        assert not second
    with locked(tmp_path / "a", wait=False) as third:
        assert third


def test_shared_holders_do_not_exclude_each_other(tmp_path: Path) -> None:
    with locked(tmp_path / "a", shared=True), locked(tmp_path / "a", wait=False, shared=True) as second:
        assert second
        with locked(tmp_path / "a", wait=False) as alone:
            assert not alone


def test_free_files_go_and_held_and_spared_ones_stay(tmp_path: Path) -> None:
    for name in ("free", "spared"):
        with locked(tmp_path / name):
            pass
    with locked(tmp_path / "held"):
        remove_free(tmp_path, spare={"spared"})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["held", "spared"]


def test_who_waits_for_a_file_that_is_deleted_takes_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    inside, leave = threading.Event(), threading.Event()

    def wait() -> None:
        with locked(path):
            inside.set()
            leave.wait(30)

    with locked(path):
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        time.sleep(0.2)  # until it waits for this very file
        path.unlink()
    assert inside.wait(30)
    with locked(path, wait=False) as second:
        assert not second  # as it would, did the other hold a file that nobody can find
    leave.set()
    waiting.join(30)
