"""Processes and machines that build one artefact at once, and builders that die."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, PreconditionError

from storage import bucket as bucket_module
from storage.artefacts import ArtefactStore
from tests.places import KEY, SOURCES, Builder, Place, new_bucket_place

CHILD = """
import sys, time
from pathlib import Path
from storage.artefacts import ArtefactStore

url, log, seconds, key, staging = *sys.argv[1:3], float(sys.argv[3]), *sys.argv[4:]

def build(folder):
    (folder / "data").write_bytes(b"x" * 1000)
    with open(log, "a") as file:
        file.write("built\\n")
    time.sleep(seconds)

store = ArtefactStore(url, staging=Path(staging) if staging else None)
print(store.get_or_create(key, build)[1])
"""


# A bucket in memory is seen by one process only.
several_processes = pytest.mark.parametrize("place", ["folder", "bucket"], indirect=True)


def child(place: Place, log: Path, seconds: float, staging: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, place.url, str(log), str(seconds), KEY, str(staging or place.staging or "")],
        env={**os.environ, "PYTHONPATH": SOURCES},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < deadline, "the child never began to build"
        time.sleep(0.01)


@several_processes
def test_concurrent_processes_build_once(place: Place, store: ArtefactStore, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [child(place, log, 0.3) for _ in range(3)]
    hits = sorted(process.communicate(timeout=60)[0].strip() for process in children)
    assert hits == ["False", "True", "True"]
    assert log.read_text() == "built\n"
    assert store.fault(KEY, again=True) is None


def test_machines_that_race_for_a_bucket_leave_one_artefact(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Staging folders that share no lock, as on two machines: both build, one wins, and nothing else stays."""
    place = new_bucket_place(tmp_path, monkeypatch)
    stores = [ArtefactStore(place.url, staging=tmp_path / f"machine-{n}") for n in range(3)]
    meeting = threading.Barrier(3)

    def build(folder: Path) -> None:
        (folder / "data").write_bytes(b"x")
        meeting.wait(30)  # so that all three build

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda store: store.get_or_create(KEY, build), stores))
    assert [hit for _, hit in results] == [False] * 3
    assert place.objects("data/") == [f"data/{KEY}/{place.manifest(KEY)['attempt']}/data"]
    assert all((store.folder(KEY) / "data").read_bytes() == b"x" for store in stores)


def test_machines_that_race_to_replace_a_damaged_artefact(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_bucket_place(tmp_path, monkeypatch)
    place.open().get_or_create(KEY, Builder())
    place.write(KEY, "deep/data", b"cytes")
    stores = [ArtefactStore(place.url, staging=tmp_path / f"machine-{n}") for n in range(3)]
    meeting = threading.Barrier(3)

    def build(folder: Path) -> None:
        Builder()(folder)
        meeting.wait(30)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda store: store.get_or_create(KEY, build), stores))
    assert all((store.folder(KEY) / "deep" / "data").read_bytes() == b"bytes" for store in stores)
    assert len(place.objects("data/")) == 2


@pytest.mark.parametrize("damaged", [False, True], ids=["where there is none", "in place of a damaged one"])
def test_a_put_whose_answer_is_lost_is_still_ours(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """The client sends it again and is told that there is a manifest: its own, which is not to be dropped."""
    place = new_bucket_place(tmp_path, monkeypatch)
    if damaged:
        place.open().get_or_create(KEY, Builder())
        place.write(KEY, "deep/data", b"cytes")
    put, lost = obstore.put, []

    def forgetful(store: object, name: str, *content: object, **how: Any) -> object:
        answer = put(store, name, *content, **how)
        if name.startswith("manifests/") and not lost:
            lost.append(name)
            raise PreconditionError("sent again") if damaged else AlreadyExistsError("sent again")
        return answer

    monkeypatch.setattr(bucket_module.obstore, "put", forgetful)
    store = place.open()
    assert store.get_or_create(KEY, Builder())[1] is False
    assert lost
    assert store.fault(KEY, again=True) is None
    assert (ArtefactStore(place.url, staging=tmp_path / "other").folder(KEY) / "deep/data").read_bytes() == b"bytes"


@several_processes
def test_killed_builder_leaves_nothing_finished_and_no_lock(place: Place, store: ArtefactStore, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = child(place, log, 60)
    wait_for(log)
    (corpse,) = place.leftovers()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert place.is_empty(KEY)

    started = time.monotonic()
    assert store.get_or_create(KEY, Builder())[1] is False
    assert time.monotonic() - started < 5
    assert store.fault(KEY, again=True) is None

    assert corpse.exists()
    place.open()
    assert corpse.exists()  # young: its builder may be about to be looked at
    os.utime(corpse, (0, 0))
    place.open()
    assert not corpse.exists()
