"""Places that cannot be written, and addresses that are none."""

import errno
from pathlib import Path

import pytest

from bico.errors import StoreError
from storage import folder as folder_module
from storage.artefacts import ArtefactStore, folder_of
from storage.fault_points import FaultPoint, intercepted
from storage.manifest import MANIFEST
from tests.places import KEY, Builder, FolderPlace, Place


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/store cannot be written .Not a directory.: choose another folder"):
        ArtefactStore(tmp_path / "file" / "store")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/store", "give a folder, file:///path, s3://bucket/prefix, gs://bucket/prefix or az://"),
        ("http://user:hunter2@host/store", "http://\\*\\*\\*@host/store: give a folder"),
        ("file://host/store", "names the machine 'host': write file:///path"),
        ("s3:///prefix", "names no bucket: write s3://bucket/prefix"),
        ("az:///prefix", "names no bucket: write az://container/prefix"),
        ("s3://key:hunter2@bucket/prefix", "s3://\\*\\*\\*: keep keys out of the address; set AWS_ACCESS_KEY_ID"),
        ("gs://key:hunter2@bucket/prefix", "gs://\\*\\*\\*: .*set GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_address_that_is_none_is_refused_and_makes_no_folder(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BICO_CACHE", str(tmp_path))
    with pytest.raises(StoreError, match=message) as caught:
        ArtefactStore(url)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_file_url_is_a_folder(tmp_path: Path) -> None:
    ref, _ = ArtefactStore((tmp_path / "with space").as_uri()).get_or_create(KEY, Builder())
    assert ref.root == str(tmp_path / "with space")
    assert folder_of(ref).is_dir()


def test_bucket_that_is_not_there_is_a_store_error(s3: None, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="s3://no-such-bucket/x refused .*check the address, AWS_ENDPOINT_URL"):
        ArtefactStore("s3://no-such-bucket/x", staging=tmp_path)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "point",
    [
        FaultPoint.LEASED,
        FaultPoint.LOCKED,
        FaultPoint.PREPARED,
        FaultPoint.BUILT,
        FaultPoint.SEALED,
        FaultPoint.UPLOADED,
    ],
)
def test_full_disk_is_a_store_error_and_leaves_nothing(place: Place, store: ArtefactStore, point: FaultPoint) -> None:
    if point is FaultPoint.UPLOADED and place.staging is None:
        point = FaultPoint.SEALED  # a folder uploads nothing
    with (
        intercepted(lambda reached, _: reached is point and full()),
        pytest.raises(StoreError, match="(cannot be written|refused) .No space left on device"),
    ):
        store.get_or_create(KEY, Builder())
    assert place.leftovers() == []
    assert not place.open().is_complete(KEY)
    assert store.get_or_create(KEY, Builder())[1] is False


def test_full_disk_at_the_flush_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = FolderPlace(str(tmp_path / "store"), None)
    store = place.open()
    monkeypatch.setattr(folder_module, "flush", full)
    with pytest.raises(StoreError, match="cannot be written .No space left on device."):
        store.get_or_create(KEY, Builder())
    assert place.leftovers() == []
    assert place.is_empty(KEY)


def test_lock_that_cannot_be_made_is_a_store_error(store: ArtefactStore) -> None:
    (store.backend.staging / "locks" / KEY).mkdir()
    with pytest.raises(StoreError, match="cannot be written .Is a directory."):
        store.get_or_create(KEY, Builder())


def test_an_error_of_the_build_stays_what_it_is(store: ArtefactStore) -> None:
    with pytest.raises(FileNotFoundError, match="dataset"):
        store.get_or_create(KEY, lambda folder: (folder / "dataset").read_text())  # type: ignore[arg-type, return-value]


def test_durable_flushes_every_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(folder_module, "flush", lambda path: flushed.append(path.name))
    ArtefactStore(tmp_path, durable=False).get_or_create("loose", Builder())
    assert flushed == []
    ArtefactStore(tmp_path).get_or_create(KEY, Builder())
    assert {"data", "deep", "empty", MANIFEST, "final"} < set(flushed)
    assert flushed[-1] == "final"


def test_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ref, _ = ArtefactStore(Path("store")).get_or_create(KEY, Builder())
    monkeypatch.chdir("/")
    assert folder_of(ref).is_dir()


def test_what_was_a_means_and_is_discarded_is_not_among_what_was_used(store: ArtefactStore) -> None:
    other = f"{KEY[:-1]}{'0' if KEY[-1] != '0' else '1'}"
    with store.uses() as used:
        for key in (KEY, other):
            store.get_or_create(key, lambda out: (out / "a").write_text("x"))
        assert used == {KEY, other}
        store.discard(other)
    assert used == {KEY} and not store.is_complete(other)
