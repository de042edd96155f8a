import hashlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bico.data.folders import from_folder, read_folder
from bico.data.tasks import EMBEDDED, Prepared, Split, get_task
from bico.errors import UnknownTaskError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task in the format of `datasets`: nine pictures, three classes."""
    folder = tmp_path / "colours"
    folder.mkdir()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["red", "dark_green", "blue"]))
    for split, count in (("train", 9), ("test", 6)):
        pictures = [Image.new("RGB", (5, 4), tuple(int(c == n % 3) * 200 for c in range(3))) for n in range(count)]
        rows = {"image": pictures, "label": [n % 3 for n in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_tasks_are_whole(name: str) -> None:
    task = get_task(name)
    assert all("{}" in prompt for prompt in task.prompts)
    for split in ("train", "test"):
        opened = task.open(split)
        assert len(opened) == task.sizes[split]
        assert opened.labels.unique().tolist() == list(range(len(task.class_names)))
        assert opened.example(0).size[0] >= 8


# What the generator drew when GENERATED was last raised: cached results are keyed on that number alone.
PINNED = {"segments": "43b133a7c8f387ec", "lamps": "1cd5905b99df8ab4"}


def test_generated_pictures_change_only_with_their_revision() -> None:
    for name, expected in PINNED.items():
        test = get_task(name).open("test")
        pictures = b"".join(np.asarray(test.example(index)).tobytes() for index in range(20))
        assert hashlib.sha256(pictures).hexdigest()[:16] == expected, f"{name} changed: raise GENERATED and pin anew"
    assert set(PINNED) == set(EMBEDDED) - {"digits"}


def test_digits_splits_share_no_picture() -> None:
    task = get_task("digits")
    seen = [{np.asarray(task.open(s).example(i)).tobytes() for i in range(task.sizes[s])} for s in ("train", "test")]
    assert not seen[0] & seen[1]


def test_a_parquet_folder_is_a_task(folder: Path) -> None:
    task = get_task("colours", [folder])
    assert task.class_names == ("red", "dark green", "blue")
    assert task.sizes == {"train": 9, "test": 6}
    train = task.open("train")
    assert train.labels.tolist() == [0, 1, 2] * 3
    assert train.example(4).getpixel((0, 0)) == (0, 200, 0)
    assert get_task("colours", [folder]).revision == task.revision


def test_the_revision_follows_the_files(folder: Path, tmp_path: Path) -> None:
    before = get_task("colours", [folder]).revision
    moved = tmp_path / "other" / "colours"
    moved.mkdir(parents=True)
    for split in ("train", "test"):
        (moved / f"{split}.parquet").write_bytes((folder / f"{split}.parquet").read_bytes())
    assert get_task("colours", [moved]).revision == before
    (moved / "test.parquet").write_bytes((folder / "train.parquet").read_bytes())
    for kept in (from_folder, read_folder):
        kept.cache_clear()
    assert get_task("colours", [moved]).revision != before


def test_unknown_tasks_name_the_nearest() -> None:
    with pytest.raises(UnknownTaskError, match="'digit': did you mean 'digits'"):
        get_task("digit")


def test_folders_that_hold_no_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownTaskError, match=r"no train\.parquet there"):
        get_task(tmp_path.name, [tmp_path])
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(UnknownTaskError, match=r"needs a column `label` of classes, has \['text'\]"):
        get_task(tmp_path.name, [tmp_path])


def _counting_split(calls: list[int]) -> Split:
    def picture(index: int) -> Image.Image:
        calls.append(index)
        return Image.new("L", (2, 2), index)

    return Split(torch.arange(7) % 3, picture)


def _prepare(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.tensor(np.asarray(p), dtype=torch.float32) for p in pictures])


def test_prepared_pictures_are_made_once() -> None:
    calls: list[int] = []
    data = Prepared(_counting_split(calls), _prepare)
    inputs, labels = data.batch(torch.tensor([3, 1, 3]))
    assert inputs[:, 0, 0].tolist() == [3, 1, 3] and labels.tolist() == [0, 1, 0]
    data.batch(torch.tensor([1, 3]))
    assert calls == [3, 1]


def test_prepared_pictures_stay_within_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    data = Prepared(_counting_split(calls), _prepare)
    monkeypatch.setattr(Prepared, "BUDGET", 2 * 16)
    for _ in range(2):
        data.batch(torch.tensor([0, 1, 2]))
    assert calls == [0, 1, 2, 2]


def test_batches_go_through_in_order_up_to_a_limit() -> None:
    data = Prepared(_counting_split([]), _prepare)
    assert [len(labels) for _, labels in data.batches(3)] == [3, 3, 1]
    assert torch.cat([inputs[:, 0, 0] for inputs, _ in data.batches(3, limit=5)]).tolist() == [0, 1, 2, 3, 4]
