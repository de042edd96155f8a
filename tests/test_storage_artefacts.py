import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bico.errors import StoreError
from storage import artefacts
from storage.artefacts import MANIFEST, ArtefactStore
from storage.keys import Ref

KEY = "maps-0123456789abcdef"


class Builder:
    """Writes two files and counts how often it was asked to."""

    def __init__(self, content: bytes = b"bytes") -> None:
        self.calls = 0
        self.content = content

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "data").write_bytes(self.content)
        (folder / "empty").write_bytes(b"")


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "store")


def leftovers(store: ArtefactStore) -> list[Path]:
    return list((store.root / "tmp").iterdir())


def test_built_once_then_found(store: ArtefactStore) -> None:
    build = Builder()
    assert store.fault(KEY) == "it has no manifest"
    ref, hit = store.get_or_create(KEY, build, {"stage": "maps"})
    assert not hit
    assert ref == Ref(KEY, str(store.root)) == store.ref(KEY)
    assert (ref.path / "deep" / "data").read_bytes() == b"bytes"
    assert store.get_or_create(KEY, build) == (ref, True)
    assert build.calls == 1
    assert store.is_complete(KEY)
    assert store.verify(KEY)
    assert leftovers(store) == []


def test_manifest_lists_what_was_written(store: ArtefactStore) -> None:
    ref, _ = store.get_or_create(KEY, Builder(b"abc"), {"stage": "maps"})
    manifest = json.loads((ref.path / MANIFEST).read_text())
    assert manifest["key"] == KEY
    assert manifest["meta"] == {"stage": "maps"}
    assert set(manifest["files"]) == {"deep/data", "empty"}
    assert manifest["files"]["deep/data"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def damage_manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: (f / "deep/data").write_bytes(b"byte"), "deep/data has 4 bytes, not 5"),
    "grown": (lambda f: (f / "deep/data").write_bytes(b"bytes!"), "deep/data has 6 bytes, not 5"),
    "file gone": (lambda f: (f / "empty").unlink(), "empty cannot be read"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "it has no manifest"),
    "manifest cut": (lambda f: (f / MANIFEST).write_text("{"), "its manifest is damaged"),
    "manifest of zeros": (lambda f: (f / MANIFEST).write_bytes(bytes(100)), "its manifest is damaged"),
    "manifest no object": (lambda f: (f / MANIFEST).write_text("[]"), "its manifest is damaged"),
    "manifest without files": (damage_manifest(lambda m: m.pop("files")), "its manifest is damaged"),
    "manifest of another": (damage_manifest(lambda m: m.update(key="other")), "its manifest is that of other"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_seen_and_rebuilt(store: ArtefactStore, name: str) -> None:
    damage, fault = DAMAGES[name]
    build = Builder()
    ref, _ = store.get_or_create(KEY, build)
    damage(ref.path)
    assert store.fault(KEY) == fault
    assert store.get_or_create(KEY, build) == (ref, False)
    assert build.calls == 2
    assert store.verify(KEY)
    assert leftovers(store) == []


def test_flipped_bit_is_seen_by_digests(store: ArtefactStore) -> None:
    ref, _ = store.get_or_create(KEY, Builder())
    flip(ref.path / "deep" / "data")
    assert store.is_complete(KEY)  # the cheap look cannot see it
    assert not store.verify(KEY)
    assert store.fault(KEY, digests=True) == "deep/data is not what was written"
    careful = ArtefactStore(store.root, verify_hits=True)
    assert careful.get_or_create(KEY, Builder()) == (ref, False)
    assert careful.get_or_create(KEY, Builder()) == (ref, True)
    assert store.verify(KEY)


def test_deleted_artefact_is_rebuilt(store: ArtefactStore) -> None:
    build = Builder()
    store.get_or_create(KEY, build)
    store.discard(KEY)
    assert not store.is_complete(KEY)
    store.discard(KEY)  # already gone: nothing to do
    assert store.get_or_create(KEY, build)[1] is False
    assert build.calls == 2


def test_failed_build_leaves_nothing(store: ArtefactStore) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise ZeroDivisionError("in the maths")

    with pytest.raises(ZeroDivisionError, match="in the maths"):
        store.get_or_create(KEY, fail)
    assert leftovers(store) == []
    assert not store.ref(KEY).path.exists()
    assert store.get_or_create(KEY, Builder())[1] is False  # and the lock is free again


def link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: None, "is empty"),
        (lambda folder: (folder / "only-a-folder").mkdir(), "is empty"),
        (link, "holds link, which is not a plain file"),
        (lambda folder: os.mkfifo(folder / "pipe"), "holds pipe, which is not a plain file"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "which belongs to the store"),
    ],
)
def test_what_is_no_artefact_is_not_committed(
    store: ArtefactStore, build: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        store.get_or_create(KEY, build)
    assert leftovers(store) == []
    assert not store.ref(KEY).path.exists()


def test_meta_is_checked_before_the_work(store: ArtefactStore) -> None:
    build = Builder()
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.get_or_create(KEY, build, {"path": Path("x")})
    assert build.calls == 0


def test_bad_key_is_refused(store: ArtefactStore) -> None:
    build = Builder()
    for use in (store.fault, store.ref, store.discard, lambda key: store.get_or_create(key, build)):
        with pytest.raises(StoreError, match="is not an artefact key"):
            use("../escape")
    assert build.calls == 0


# Several artefacts of one pass


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
    assert all((ref.path / "data").read_text() == key for key, (ref, _) in first.items())

    store.discard("b")
    again = store.get_or_create_many(["a", "b", "c"], build_all(calls))
    assert {key: hit for key, (_, hit) in again.items()} == {"a": True, "b": False, "c": True}
    assert calls[1:] == [{"b"}]  # only what is missing

    store.get_or_create_many(["a", "b", "c"], build_all(calls))
    assert len(calls) == 2
    assert store.get_or_create_many([], build_all(calls)) == {}


def test_a_fault_in_one_of_many_commits_none(store: ArtefactStore) -> None:
    def forget_b(folders: dict[str, Path]) -> None:
        (folders["a"] / "data").write_text("a")

    with pytest.raises(StoreError, match="Artefact b is empty"):
        store.get_or_create_many(["a", "b"], forget_b)
    assert not store.is_complete("a")
    assert leftovers(store) == []


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


# Processes that race and die

CHILD = """
import sys, time
from pathlib import Path
from storage.artefacts import ArtefactStore

root, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def build(folder):
    (folder / "data").write_bytes(b"x" * 1000)
    with open(log, "a") as file:
        file.write("built\\n")
    time.sleep(seconds)

print(ArtefactStore(root).get_or_create(sys.argv[4], build)[1])
"""


def child(store: ArtefactStore, log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store.root), str(log), str(seconds), KEY],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 30
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < deadline, "the child never began to build"
        time.sleep(0.01)


def test_concurrent_processes_build_once(store: ArtefactStore, tmp_path: Path) -> None:
    log = tmp_path / "log"
    children = [child(store, log, 0.3) for _ in range(3)]
    hits = sorted(process.communicate(timeout=60)[0].strip() for process in children)
    assert hits == ["False", "True", "True"]
    assert log.read_text() == "built\n"
    assert store.verify(KEY)


def test_killed_builder_leaves_nothing_finished_and_no_lock(store: ArtefactStore, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = child(store, log, 60)
    wait_for(log)
    (corpse,) = leftovers(store)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert not store.ref(KEY).path.exists()

    started = time.monotonic()
    assert store.get_or_create(KEY, Builder())[1] is False
    assert time.monotonic() - started < 5
    assert store.verify(KEY)

    assert corpse.exists()
    ArtefactStore(store.root)
    assert corpse.exists()  # young: its builder may be about to be looked at
    os.utime(corpse, (0, 0))
    ArtefactStore(store.root)
    assert not corpse.exists()


def test_sweep_spares_a_builder_at_work(store: ArtefactStore) -> None:
    def build(folder: Path) -> None:
        (folder / "data").write_bytes(b"x")
        os.utime(folder, (0, 0))  # a training of several days
        ArtefactStore(store.root)
        assert folder.exists()

    store.get_or_create(KEY, build)
    assert store.verify(KEY)


def test_sweep_leaves_strangers_alone(store: ArtefactStore) -> None:
    stranger = store.root / "tmp" / ".not-ours"
    stranger.mkdir()
    os.utime(stranger, (0, 0))
    ArtefactStore(store.root)
    assert stranger.exists()


# Places that cannot be written


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/store cannot be written .Not a directory.: choose another folder"):
        ArtefactStore(tmp_path / "file" / "store")


def test_url_is_refused_and_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="only local folders"):
        ArtefactStore("s3://bucket/store")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_full_disk_at_the_commit_is_a_store_error(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artefacts, "_flush", full)
    with pytest.raises(StoreError, match="cannot be written .No space left on device."):
        store.get_or_create(KEY, Builder())
    assert leftovers(store) == []
    assert not store.ref(KEY).path.exists()


def test_lock_that_cannot_be_made_is_a_store_error(store: ArtefactStore) -> None:
    (store.root / "locks" / KEY).mkdir()
    with pytest.raises(StoreError, match="cannot be written .Is a directory."):
        store.get_or_create(KEY, Builder())


def test_an_error_of_the_build_stays_what_it_is(store: ArtefactStore) -> None:
    with pytest.raises(FileNotFoundError, match="dataset"):
        store.get_or_create(KEY, lambda folder: (folder / "dataset").read_text())  # type: ignore[arg-type, return-value]


def test_durable_flushes_every_file_and_folder(store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(artefacts, "_flush", lambda path: flushed.append(path.name))
    ArtefactStore(store.root, durable=False).get_or_create("loose", Builder())
    assert flushed == []
    store.get_or_create(KEY, Builder())
    assert {"data", "deep", "empty", MANIFEST, "final"} < set(flushed)
    assert flushed[-1] == "final"


def test_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ref, _ = ArtefactStore(Path("store")).get_or_create(KEY, Builder())
    monkeypatch.chdir("/")
    assert ref.path.is_dir()
