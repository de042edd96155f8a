"""Data as spreadsheets, crawlers and unpacked archives leave it: read right, told, or refused in one line."""

import base64
import codecs
import json
from pathlib import Path

import pytest

from bico.errors import BicoError
from tests.own_data import called, picture, read, seen, stored, write

CSV = {
    "blanks before quotes": 'text, label\n"of, the sea", "sea"\nof the court, court\n',
    "tabs": "text\tlabel\nof, the sea\tsea\nof the court\tcourt\n",
    "bars": "text|label\nof, the sea|sea\nof the court|court\n",
    "quoted header": '"text, long";label\n"of; the sea";sea\nof the court;court\n',
    "two columns without a name": ",,text,label\n0,0,of the sea,sea\n1,1,of the court,court\n",
    "a last comma": "text,label,\nof the sea,sea,\nof the court,court,\n",
    "capitals": "Text,Label\nof the sea,sea\nof the court,court\n",
    "two bytes a letter": codecs.BOM_UTF16_LE + "text,label\nof the sea,sea\nof the court,court\n".encode("utf-16-le"),
}


def both(folder: Path, name: str, content: str | bytes) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.{name}").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize("form", CSV)
def test_csv_of_other_tools(form: str, tmp_path: Path) -> None:
    said = {"text_columns": ["text, long"]} if form == "quoted header" else {}
    task = read(both(tmp_path / "t", "csv", CSV[form]), **said)
    assert task.class_names == ("court", "sea") and called(task, "test") == ["sea", "court"] == seen(task, "test")


COLUMNS = {"text": ["of the sea", "of the court"], "label": ["sea", "court"]}
JSON = {
    "lists": COLUMNS,
    "pandas": {name: {str(n): cell for n, cell in enumerate(cells)} for name, cells in COLUMNS.items()},
    "split": {
        "columns": [*COLUMNS],
        "index": [0, 1],
        "data": [list(row) for row in zip(*COLUMNS.values(), strict=True)],
    },
}


@pytest.mark.parametrize("form", JSON)
def test_json_by_column(form: str, tmp_path: Path) -> None:
    task = read(both(tmp_path / "t", "json", json.dumps(JSON[form])))
    assert called(task, "train") == ["sea", "court"] == seen(task, "train")


def test_numbers_that_pandas_wrote_with_a_point_are_numbers(tmp_path: Path) -> None:
    folder = both(tmp_path / "t", "csv", "text,label\na,10.0\nb,2.0\nc,0.0\nd,\n")
    (folder / "test.csv").write_text("text,label\nb,2\n")
    task = read(folder)
    assert task.class_names == ("0", "2", "10") and called(task, "train") == ["10", "2", "0"]
    assert called(task, "test") == ["2"]


def test_yes_and_no_are_names_of_classes(tmp_path: Path) -> None:
    folder = both(tmp_path / "t", "csv", "text,label\na,0\nb,1\n")
    (folder / "task.yaml").write_text("class_names: {0: no, 1: yes}\n")
    assert read(folder).class_names == ("no", "yes")


def test_what_is_odd_is_told(tmp_path: Path) -> None:
    notes = read(both(tmp_path / "t", "csv", 'text,label\na,Yes\n" ",yes\n')).notes
    assert any("1 of 2 texts of the train split are empty in `text`" in note for note in notes)
    assert any("classes Yes, yes differ in nothing but capitals" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("csv", "text,label\ncaf\xe9,c\n".encode("latin-1"), r"train\.csv, byte 14: is no UTF-8: save the file"),
        (
            "jsonl",
            '{"text": "a", "label": "1"}\n{"text": "b", "label": 2}',
            "`label` holds a str in some rows and a int",
        ),
        ("jsonl", '{"text": "a", "label": Infinity}', "row 0 has 'inf' in `label`"),
    ],
)
def test_tables_that_are_refused(name: str, content: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(BicoError, match=words):
        read(both(tmp_path / "t", name, content))


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    folder = both(tmp_path / "t", "csv", "text,label\na,0\nb,1\n")
    (folder / "task.yaml").write_text("class_names: [~, yes]\n")
    with pytest.raises(BicoError, match=r"task\.yaml: class_names has an empty name"):
        read(folder)


def test_shards_that_are_absent_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", {"text": lambda name, _: f"of the {name}", "label": lambda name, _: name})
    (folder / "train.parquet").rename(folder / "train-00000-of-00002.parquet")
    with pytest.raises(BicoError, match=r"train-00000-of-00002\.parquet is one of 2 files, and 1 are absent"):
        read(folder)


# Pictures --------------------------------------------------------------------------------------------------------------


def tree(folder: Path, *places: str) -> Path:
    """Pictures whose shade is that of the class that their file is called after."""
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        picture(Path(place).stem.split("-")[0]).save(folder / place)
    return folder


SPLITS = ("train", "test")


def test_folders_within_those_of_classes_are_read(tmp_path: Path) -> None:
    places = [f"{split}/{name}/{at}{name}.png" for split in SPLITS for name in ("sea", "court") for at in ("", "more/")]
    task = read(tree(tmp_path / "t", *places))
    assert task.sizes == {"train": 4, "test": 4} and not task.notes
    assert called(task, "train") == ["court", "court", "sea", "sea"] == seen(task, "train")


def test_a_folder_around_the_splits_is_opened(tmp_path: Path) -> None:
    task = read(
        tree(tmp_path / "t", *(f"images/{split}/{name}/{name}.png" for split in SPLITS for name in ("sea", "wood")))
    )
    assert called(task, "test") == ["sea", "wood"] == seen(task, "test")


def test_files_beside_pictures_are_told(tmp_path: Path) -> None:
    folder = tree(tmp_path / "t", *(f"{split}/{name}/{name}.png" for split in SPLITS for name in ("sea", "wood")))
    (folder / "train" / "about.csv").write_text("a,b\n1,2\n")
    (folder / "train" / "sea" / "x.heic").write_bytes(b"x")
    (folder / "train" / "sea" / "Thumbs.db").write_bytes(b"x")
    task = read(folder)
    assert task.sizes == {"train": 2, "test": 2}
    assert [note.partition(": ")[2] for note in task.notes] == [
        "2 files are no pictures and are left out, such as about.csv."
    ]
    folder = folder.rename(tmp_path / "other")
    (folder / "train" / "sea" / "away.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(BicoError, match=r"away\.png cannot be read \(No such file"):
        read(folder)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (("train/sea-1.png", "test/wood-1.png"), "its splits hold pictures and no folder per class"),
        (("sea/train/sea.png", "sea/test/sea.png", "wood/train/wood.png"), "folders of classes hold folders of splits"),
    ],
)
def test_splits_are_never_taken_for_classes(places: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(BicoError, match=words):
        read(tree(tmp_path / "t", *places), test_share=0.5)


@pytest.mark.parametrize("lead", ["", "data:image/png;base64,"])
def test_pictures_written_as_text(lead: str, tmp_path: Path) -> None:
    coded = {"image": lambda name, _: lead + base64.b64encode(stored(name)).decode(), "label": lambda name, _: name}
    task = read(write(tmp_path / "t", coded))
    assert called(task, "test") == ["wood", "court"] == seen(task, "test")
