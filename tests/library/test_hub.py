"""The benchmark's data sets, on local copies in every format in which `datasets` leaves them. No network."""

import re
from pathlib import Path

import datasets
import pytest
from PIL import Image

from bico.data.folders import read_folder
from bico.data.hub import HUB, HubTask, download, from_hub, names_of
from bico.data.reading import Reading
from bico.data.tasks import all_tasks, get_task
from bico.data.vision8 import CLASS_NAMES, PROMPTS
from bico.errors import ConfigError, DataError, UnknownTaskError

PUBLISHED = {
    "eurosat": (10, 3), "gtsrb": (43, 3), "svhn": (10, 3), "resisc45": (45, 18),
    "dtd": (47, 8), "cars": (196, 8), "mnist": (10, 1), "sun397": (397, 2),
}  # fmt: skip


def rows(names: list[str], count: int) -> datasets.Dataset:
    """As many pictures, whose red channel is their number; labels count down."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    pictures = [Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(count)]
    return datasets.Dataset.from_dict(
        {"image": pictures, "label": [(count - n) % len(names) for n in range(count)]}, features=features
    )


def write(folder: Path, layout: str, names: list[str], count: int = 6) -> Path:
    """A local copy: one file per split, a download from the hub in two parts, or a dictionary saved to disk."""
    splits = {"train": rows(names, count), "test": rows(names, count // 2)}
    if layout == "saved":
        datasets.DatasetDict(splits).save_to_disk(folder)
    for split, part in splits.items():
        if layout == "plain":
            part.to_parquet(folder / f"{split}.parquet")
        if layout == "download":
            for shard in range(2):
                path = folder / "data" / f"{split}-0000{shard}-of-00002.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                part.shard(2, shard, contiguous=True).to_parquet(path)
    return folder


EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
           "Residential", "River", "SeaLake"]  # fmt: skip


def test_the_benchmark_is_whole() -> None:
    assert {name: (len(set(CLASS_NAMES[name])), len(set(PROMPTS[name]))) for name in PUBLISHED} == PUBLISHED
    assert set(CLASS_NAMES) == set(PROMPTS) <= set(HUB)
    for name, spec in HUB.items():
        assert re.fullmatch(r"[0-9a-f]{40}", spec.revision) and spec.repo.count("/") == 1
        assert all(prompt.count("{}") == 1 for prompt in spec.prompts or PROMPTS[name])
        assert all(text == text.strip() and ";" not in text for text in names_of(name))


def test_a_data_set_more_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flowers = HubTask("somebody/flowers", "0" * 40, class_names=("a rose", "a tulip"), prompts=("a photo of {}.",))
    monkeypatch.setitem(HUB, "flowers", flowers)
    task = get_task("hub:flowers", [write(tmp_path / "flowers", "plain", ["rose", "tulip"])])
    assert task.class_names == ("a rose", "a tulip") and task.prompts == ("a photo of {}.",)
    assert len(task.open("train")) > 0


@pytest.mark.parametrize("layout", ["plain", "download", "saved"])
def test_a_local_copy_has_the_pictures_and_the_benchmark_the_names(layout: str, tmp_path: Path) -> None:
    copy = write(tmp_path / "eurosat", layout, EUROSAT)
    task = get_task("hub:eurosat", [copy])
    assert task.class_names[:3] == ("annual crop land", "forest", "brushland or shrubland")
    assert task.prompts[1] == "a centered satellite photo of a {}."
    assert (task.sizes["train"], task.sizes["test"]) == (6, 3)
    train = task.open("train")
    assert train.labels.tolist() == [6, 5, 4, 3, 2, 1]
    assert [train.example(n).getpixel((0, 0))[0] for n in (0, 4)] == [0, 4]


def test_a_plain_name_takes_a_folder_as_it_is(tmp_path: Path) -> None:
    copy = write(tmp_path / "eurosat", "download", EUROSAT)
    assert get_task("eurosat", [copy]).class_names == tuple(EUROSAT)
    assert get_task("eurosat").class_names == CLASS_NAMES["eurosat"]


def test_the_revision_is_the_pinned_one_or_that_of_the_copys_content(tmp_path: Path) -> None:
    published = from_hub("eurosat").revision
    assert HUB["eurosat"].revision in published
    ours = [get_task("hub:eurosat", [write(tmp_path / str(n) / "eurosat", "plain", EUROSAT, n)]) for n in (6, 8)]
    assert len({published, *(task.revision for task in ours)}) == 3


def test_nothing_is_downloaded_before_a_split_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict] = []
    copy = write(tmp_path / "snapshot", "download", list(CLASS_NAMES["dtd"]), 60)

    def snapshot(repo: str, **options: object) -> str:
        asked.append({"repo": repo, **options})
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    from_hub.cache_clear()
    task = get_task("hub:dtd")
    assert task.identity["classes"] == list(CLASS_NAMES["dtd"]) and not asked
    assert task.sizes["test"] == 30
    assert asked[0] == {
        "repo": "tanganke/dtd",
        "repo_type": "dataset",
        "revision": HUB["dtd"].revision,
        "allow_patterns": ["data/train-*.parquet", "data/test-*.parquet"],
    }
    from_hub.cache_clear()


def test_without_network_the_error_says_how_to_give_a_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="hub:sun397: tanganke/sun397 at 9c4afd6 cannot be downloaded") as caught:
        get_task("hub:sun397").sizes["train"]
    assert "--data FOLDER/sun397" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError):
        download("cars")


def test_copies_of_something_else_are_refused(tmp_path: Path) -> None:
    few = write(tmp_path / "few" / "eurosat", "plain", EUROSAT[:4])
    with pytest.raises(DataError, match="hub:eurosat.* has 4 classes, the benchmark's 10"):
        get_task("hub:eurosat", [few])
    names = list(CLASS_NAMES["dtd"])
    swapped = write(tmp_path / "swapped" / "dtd", "plain", [names[1], names[0], *names[2:]])
    with pytest.raises(DataError, match="another order.*0 is 'blotchy' there and 'banded' here"):
        get_task("hub:dtd", [swapped])
    spelt = write(tmp_path / "spelt" / "dtd", "plain", [name.replace("-", "_").title() for name in names])
    assert get_task("hub:dtd", [spelt]).class_names == CLASS_NAMES["dtd"]


@pytest.mark.parametrize("spelling", [
    EUROSAT,
    [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) for name in EUROSAT],
    ["annual crop", "forest", "herbaceous vegetation", "highway", "industrial", "pasture", "permanent crop",
     "residential", "river", "sea or lake"],
    [name.title() for name in CLASS_NAMES["eurosat"]],
    [str(n) for n in range(10)],
])  # fmt: skip
def test_a_copys_classes_are_recognised_however_they_are_worded(spelling: list[str], tmp_path: Path) -> None:
    task = get_task("hub:eurosat", [write(tmp_path / "same" / "eurosat", "plain", spelling)])
    assert task.class_names == CLASS_NAMES["eurosat"] and task.open("train").labels.tolist() == [6, 5, 4, 3, 2, 1]
    turned = write(tmp_path / "turned" / "eurosat", "plain", spelling[::-1])
    with pytest.raises(DataError, match=f"another order than the benchmark: 0 is '{spelling[-1]}'|may be another one"):
        get_task("hub:eurosat", [turned])


def test_a_copy_without_an_order_of_its_own_is_put_into_the_benchmarks(tmp_path: Path) -> None:
    """A folder per class, in which `brushland` sorts before `forest`."""
    for split in ("train", "test"):
        for n, name in enumerate(CLASS_NAMES["eurosat"]):
            (folder := tmp_path / "eurosat" / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (n, 0, 0)).save(folder / "1.png")
    train = get_task("hub:eurosat", [tmp_path / "eurosat"]).open("train")
    shown = {CLASS_NAMES["eurosat"][train.labels[n]]: train.example(n).getpixel((0, 0))[0] for n in range(10)}
    assert shown == {name: n for n, name in enumerate(CLASS_NAMES["eurosat"])}


def test_a_name_that_cannot_be_recognised_is_said_in_the_task_file(tmp_path: Path) -> None:
    copy = write(tmp_path / "eurosat", "plain", [*EUROSAT[:2], "green stuff", *EUROSAT[3:]])
    with pytest.raises(
        DataError, match="class 2 is 'green stuff' there and 'brushland or shrubland' here.*by class_names"
    ):
        get_task("hub:eurosat", [copy])
    for kept in (from_hub, read_folder):
        kept.cache_clear()
    (copy / "task.yaml").write_text("class_names: {green stuff: brushland or shrubland}\n")
    assert get_task("hub:eurosat", [copy]).open("train").labels.tolist() == [6, 5, 4, 3, 2, 1]
    with pytest.raises(
        ConfigError, match="has the benchmark's own prompts, classes and splits, so prompts says nothing"
    ):
        get_task("hub:eurosat", [copy], Reading(prompts=("a {}",)))


def test_a_folder_with_two_configurations_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "svhn", "download", list(CLASS_NAMES["svhn"]))
    (tmp_path / "svhn" / "full").mkdir()
    for split in ("train", "test"):
        rows(["0"], 2).to_parquet(tmp_path / "svhn" / "full" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UnknownTaskError, match="train files lie in data, full"):
        get_task("svhn", [tmp_path / "svhn"])


def test_unknown_data_sets_name_the_nearest() -> None:
    with pytest.raises(UnknownTaskError, match="hub:eurosatt: did you mean 'eurosat'"):
        get_task("hub:eurosatt")


def test_all_tasks_are_the_ones_that_need_no_download(tmp_path: Path) -> None:
    assert all_tasks([tmp_path / "mnist"]) == ["digits", "segments", "lamps", "mnist"]
