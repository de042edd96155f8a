"""One artefact: built once, found, checked, rebuilt where it is damaged."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bico.errors import StoreError
from storage import manifest as manifest_module
from storage.artefacts import ArtefactStore, folder_of, open_store
from storage.gc import note_run
from storage.keys import Ref
from storage.manifest import MANIFEST
from tests.places import FILES, KEY, BucketPlace, Builder, Place


def test_built_once_then_found(place: Place, store: ArtefactStore) -> None:
    build = Builder()
    assert store.fault(KEY) == "it has no manifest"
    ref, hit = store.get_or_create(KEY, build, {"stage": "maps"})
    assert not hit
    assert ref == Ref(KEY, place.url) == store.ref(KEY)
    assert (store.folder(KEY) / "deep" / "data").read_bytes() == b"bytes"
    assert store.get_or_create(KEY, build) == (ref, True)
    assert build.calls == 1
    assert store.is_complete(KEY)
    assert store.fault(KEY, again=True) is None
    assert place.leftovers() == []


def test_another_process_finds_the_same_files(place: Place, store: ArtefactStore) -> None:
    """By the reference alone, with a copy of its own where the place is remote."""
    ref, _ = store.get_or_create(KEY, Builder(b"abc"))
    assert (folder_of(ref) / "deep" / "data").read_bytes() == b"abc"
    assert (folder_of(ref) / "empty").read_bytes() == b""
    assert open_store(ref.root).is_complete(KEY)


def test_manifest_lists_what_was_written(place: Place, store: ArtefactStore) -> None:
    store.get_or_create(KEY, Builder(b"abc"), {"stage": "maps"})
    manifest = place.manifest(KEY)
    assert manifest["key"] == KEY
    assert manifest["meta"] == {"stage": "maps"}
    assert set(manifest["files"]) == {"deep/data", "empty"}
    manifest["files"]["deep/data"].pop("e_tag", None)
    assert manifest["files"]["deep/data"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }


def test_the_layout_is_the_one_it_always_was(place: Place, store: ArtefactStore) -> None:
    """A change here makes every stored artefact a miss, and hides the leases of older processes from newer ones."""
    store.get_or_create(KEY, Builder())
    note_run(store, "r", [KEY])
    if isinstance(place, BucketPlace):
        found = set(place.objects("")) - set(place.objects("marks/"))
        attempt = place.manifest(KEY)["attempt"]
        assert found == {f"manifests/{KEY}.json", "notes/run-r"} | {f"data/{KEY}/{attempt}/{n}" for n in FILES}
        assert len(place.objects("marks/")) == 1
    else:
        root = Path(place.url)
        found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        (lease,) = (path.name for path in (root / "marks").iterdir() if path.name != ".gate")
        committed = {f"final/{KEY}/{name}" for name in (MANIFEST, *FILES)}
        assert found == committed | {f"locks/{KEY}", "marks/.gate", f"marks/{lease}", "notes/run-r"}


Damage = Callable[[Place], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda p: p.write(KEY, "deep/data", b"byte"), "deep/data has 4 bytes, not 5"),
    "grown": (lambda p: p.write(KEY, "deep/data", b"bytes!"), "deep/data has 6 bytes, not 5"),
    "a flipped bit": (lambda p: p.write(KEY, "deep/data", b"cytes"), "deep/data is not what was written"),
    "file gone": (lambda p: p.delete(KEY, "empty"), "empty cannot be read"),
    "no manifest": (lambda p: p.delete(KEY, MANIFEST), "it has no manifest"),
    "manifest cut": (lambda p: p.write(KEY, MANIFEST, b"{"), "its manifest is damaged"),
    "manifest of zeros": (lambda p: p.write(KEY, MANIFEST, bytes(100)), "its manifest is damaged"),
    "manifest no object": (lambda p: p.write(KEY, MANIFEST, b"[]"), "its manifest is damaged"),
    "manifest without files": (
        lambda p: p.change_manifest(KEY, lambda m: m.pop("files")),
        "its manifest is damaged",
    ),
    "manifest that lists nothing": (
        lambda p: p.change_manifest(KEY, lambda m: m["files"].clear()),
        "its manifest is damaged",
    ),
    "manifest of another": (
        lambda p: p.change_manifest(KEY, lambda m: m.update(key="other")),
        "its manifest is that of other",
    ),
    "manifest of another version": (
        lambda p: p.change_manifest(KEY, lambda m: m.update(format=2)),
        "its manifest is of format 2, and this version reads 1",
    ),
    "manifest that leads out": (
        lambda p: p.change_manifest(KEY, lambda m: m["files"].update({"../x": m["files"]["empty"]})),
        "its manifest lists ../x, which lies outside of it",
    ),
}


@pytest.mark.parametrize("fresh", [True, False], ids=["another process", "the same process"])
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_seen_and_rebuilt(place: Place, store: ArtefactStore, name: str, fresh: bool) -> None:
    damage, fault = DAMAGES[name]
    build = Builder()
    ref, _ = store.get_or_create(KEY, build)
    assert store.is_complete(KEY)
    damage(place)
    store = place.open() if fresh else store
    assert store.fault(KEY) == fault
    assert store.get_or_create(KEY, build) == (ref, False)
    assert build.calls == 2
    assert store.fault(KEY, again=True) is None
    assert (store.folder(KEY) / "deep" / "data").read_bytes() == b"bytes"
    assert place.leftovers() == []


def test_bits_that_flip_unseen_are_caught_when_read(place: Place, store: ArtefactStore) -> None:
    """Content that is not what the manifest's digest says, with all that shows from outside as it was."""
    store.get_or_create(KEY, Builder())
    place.change_manifest(KEY, lambda m: m["files"]["deep/data"].update(sha256="0" * 64))
    careful = place.open()
    with pytest.raises(StoreError, match="deep/data is not what was written.*run again, it will be made again"):
        careful.folder(KEY)
    assert careful.fault(KEY) == "it has no manifest"  # so that the next run does make it again
    assert careful.get_or_create(KEY, Builder())[1] is False
    assert (careful.folder(KEY) / "deep" / "data").read_bytes() == b"bytes"


def test_files_are_read_through_once_per_process(
    place: Place, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.get_or_create(KEY, Builder())
    hashed: list[str] = []
    original = manifest_module.file_digest
    monkeypatch.setattr(manifest_module, "file_digest", lambda p: (hashed.append(Path(p).name), original(p))[1])
    reader = place.open()
    for _ in range(3):
        assert reader.is_complete(KEY)
        reader.folder(KEY)
    assert sorted(hashed) == ["data", "empty"]


def test_deleted_artefact_is_rebuilt(place: Place, store: ArtefactStore) -> None:
    build = Builder()
    store.get_or_create(KEY, build)
    store.discard(KEY)
    assert not store.is_complete(KEY)
    assert place.is_empty(KEY)
    store.discard(KEY)  # already gone: nothing to do
    assert store.get_or_create(KEY, build)[1] is False
    assert build.calls == 2


def test_failed_build_leaves_nothing(place: Place, store: ArtefactStore) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise ZeroDivisionError("in the maths")

    with pytest.raises(ZeroDivisionError, match="in the maths"):
        store.get_or_create(KEY, fail)
    assert place.leftovers() == []
    assert place.is_empty(KEY)
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
    place: Place, store: ArtefactStore, build: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        store.get_or_create(KEY, build)
    assert place.leftovers() == []
    assert place.is_empty(KEY)


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
