"""Columns and labels as people have them: read rightly, or refused in one line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from bico.errors import BicoError, DataError, UnknownTaskError
from tests.own_data import NAMES, ROWS, picture, read, read_rightly, seen, stored, text, write

# Labels ----------------------------------------------------------------------------------------------------------------


def test_names_and_categories_become_sorted_classes(tmp_path: Path) -> None:
    tasks = [read(write(tmp_path / "1" / "t", {"text": text, "label": lambda name, _: name}))]
    (tmp_path / "2" / "t").mkdir(parents=True)
    for split, names in ROWS.items():
        frame = pandas.DataFrame({"text": [text(name, 0) for name in names], "label": pandas.Categorical(names)})
        frame.to_parquet(tmp_path / "2" / "t" / f"{split}.parquet")
    tasks.append(read(tmp_path / "2" / "t"))
    for task in tasks:
        assert task.class_names == ("court", "sea", "wood") and read_rightly(task)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda name, _: NAMES.index(name), ("0", "1", "2")),
        (lambda name, _: float(10 * NAMES.index(name) + 2), ("2", "12", "22")),
        (lambda name, _: str(NAMES.index(name) * 5), ("0", "5", "10")),
        (lambda name, _: f"0{NAMES.index(name)}", ("00", "01", "02")),
        (lambda name, _: name == "sea", ("false", "true")),
    ],
)
def test_numbers_and_truth_become_classes(
    make: Callable[[str, int], Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    task = read(write(tmp_path / "t", {"text": text, "label": make}))
    assert task.class_names == names
    whole = dict(zip(ROWS["train"], task.open("train").labels.tolist(), strict=True))
    assert [whole[name] for name in ROWS["test"]] == task.open("test").labels.tolist()


def own_numbering(folder: Path, test: Sequence[str], train: Sequence[str] = NAMES) -> Path:
    """Each split with a list of classes of its own."""
    for split, names in (("train", train), ("test", test)):
        types = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
        columns = {"text": text, "label": lambda name, _, names=names: list(names).index(name)}
        write(folder / split, columns, types, {split: ROWS[split]})
        (folder / split / f"{split}.parquet").rename(folder / f"{split}.parquet")
        (folder / split).rmdir()
    return folder


def test_the_test_split_is_matched_by_name(tmp_path: Path) -> None:
    same, sorted_, fewer = (
        read(own_numbering(tmp_path / str(n) / "t", test))
        for n, test in enumerate([NAMES, sorted(NAMES), ["court", "wood"]])
    )
    for task in (same, sorted_, fewer):
        assert task.class_names == tuple(NAMES) and read_rightly(task)
    assert same.about == {} and sorted_.about == fewer.about == {"test_classes": "by name"}
    rows = {"train": ["sea", "court"], "test": ["wood"]}
    more = write(tmp_path / "more" / "t", {"text": text, "label": lambda name, _: name}, rows=rows)
    with pytest.raises(DataError, match="row 0 of the test split has the label 'wood', and train has the classes cou"):
        read(more)


@pytest.mark.parametrize(("odd", "words"), [
    (12, "test: row 1 has the label 12, and `label` has 3 classes, 0 to 2"),
    (-2, "test: row 1 has the label -2, and `label` has 3 classes"),
])  # fmt: skip
@pytest.mark.parametrize("declared", [True, False])
def test_labels_outside_the_classes_are_refused(odd: int, words: str, declared: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "t", {"text": text, "label": lambda name, _: NAMES.index(name)})
    frame = pandas.read_parquet(folder / "test.parquet")
    frame.loc[1, "label"] = odd
    frame.to_parquet(folder / "test.parquet")
    if declared:  # as a cast leaves it: no value is looked at
        for split in ("train", "test"):
            path = folder / f"{split}.parquet"
            part = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
            features = part.features.copy()
            features["label"] = datasets.ClassLabel(names=NAMES)
            datasets.Dataset(part.data.table, info=datasets.DatasetInfo(features=features)).to_parquet(path)
    expected = words if declared else ("has the label '?12'?, and train" if odd > 0 else "a class is 0 or more")
    with pytest.raises(DataError, match=expected):
        read(folder)


@pytest.mark.parametrize("missing", [-1, None, float("nan"), "", "-1"])
def test_rows_without_label_are_left_out_aloud(missing: Any, tmp_path: Path) -> None:
    def label(name: str, n: int) -> Any:
        number = NAMES.index(name)
        return missing if n == 1 else str(number) if isinstance(missing, str) else float(number)

    task = read(write(tmp_path / "t", {"image": lambda name, _: picture(name), "label": label}))
    assert seen(task, "train") == ["sea", "sea", "court", "wood"] and task.open("train").labels.tolist() == [1, 1, 2, 0]
    assert task.sizes["train"] == 4 and task.sizes["test"] == 1
    assert "1 of 5 rows of the train split have no label and are left out" in task.notes[0]


@pytest.mark.parametrize(("rows", "words"), [
    ({"train": ["sea", "court"], "test": []}, "the test split has no rows"),
    ({"train": ["sea", "sea"], "test": ["sea"]}, "all rows are of one class, sea"),
])  # fmt: skip
def test_splits_that_measure_nothing_are_refused(rows: dict[str, list[str]], words: str, tmp_path: Path) -> None:
    types = {"text": datasets.Value("string"), "label": datasets.Value("string")}
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / "t", {"text": text, "label": lambda name, _: name}, types, rows))
    classes = datasets.ClassLabel(names=["sea", "court"])
    types = {"text": datasets.Value("string"), "label": classes}
    odd = {"train": ["sea", "court"], "test": ["sea"]}
    folder = write(tmp_path / "2" / "t", {"text": text, "label": lambda name, _: classes.str2int(name)}, types, odd)
    part = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=datasets.Features(types))
    part.to_parquet(folder / "test.parquet")
    with pytest.raises(DataError, match="none of the 1 rows of the test split has a label in `label`"):
        read(folder)


@pytest.mark.parametrize(("make", "words"), [
    (lambda name, n: [0, 1], r"row 0 has '\[0, 1\]' in `label`, a list"),
    (lambda name, n: 0.5 * n, "row 1 has '0.5' in `label`, a number between classes"),
])  # fmt: skip
def test_what_is_no_class_is_refused(make: Callable[[str, int], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / "t", {"text": text, "label": make}))


def test_names_that_tell_nothing_apart_are_refused(tmp_path: Path) -> None:
    columns = {"image": lambda name, _: picture(name), "label": lambda name, _: NAMES.index(name)}
    for number, (names, words) in enumerate((
        (["a b", "a_b", "c"], "classes 0 and 1 are both called 'a b'"), (["a", " ", "c"], "class 1 has no name"),
    )):  # fmt: skip
        types = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        with pytest.raises(DataError, match=words):
            read(write(tmp_path / str(number) / "t", columns, types))


# Columns ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda name, _: stored(name), lambda name, _: {"bytes": stored(name), "path": None}])
def test_a_column_of_files_is_one_of_pictures(make: Callable[[str, int], Any], tmp_path: Path) -> None:
    assert read_rightly(read(write(tmp_path / "t", {"scan": make, "label": lambda name, _: name})))


@pytest.mark.parametrize(
    ("image", "label"), [("img", "labels"), ("photo", "fine_label"), ("jpg", "target"), ("image", "class")]
)
def test_columns_are_known_by_their_names_and_types(image: str, label: str, tmp_path: Path) -> None:
    columns = {image: lambda name, _: picture(name), label: lambda name, _: name, "id": lambda name, n: f"row {n}"}
    task = read(write(tmp_path / "t", columns))
    assert read_rightly(task) and task.identity["columns"] == {
        key: name for key, name in (("label", label), ("image", image)) if key != name
    }


def test_columns_that_are_named_are_taken(tmp_path: Path) -> None:
    columns = {"a": lambda name, _: picture(name), "b": lambda name, _: picture("sea"), "c": lambda name, _: name}
    folder = write(tmp_path / "t", columns | {"label": lambda name, n: n % 2})
    assert read_rightly(task := read(folder, image_column="a", label_column="c"))
    assert task.identity["columns"] == {"image": "a", "label": "c"}
    with pytest.raises(UnknownTaskError, match=r"\['a', 'b'\] are all pictures: say which by --image-column"):
        read(folder)
    with pytest.raises(UnknownTaskError, match=r"no column is called 'd'; there are \['a', 'b', 'c', 'label'\]"):
        read(folder, image_column="d")


@pytest.mark.parametrize("more", ["label_text", "label_name", "id", "category_of_it"])
def test_no_further_column_of_text_is_read(more: str, tmp_path: Path) -> None:
    columns = {"text": lambda name, n: f"row {n}", more: lambda name, _: name, "label": lambda name, _: name}
    task = read(write(tmp_path / "t", columns))
    assert task.prompts == ("t text: {0}",) and task.open("train").example(3) == "t text: row 3"
    assert task.notes == (f"--data {tmp_path / 't'}: text is read from text and not from {more}.",)


def test_texts_that_are_the_answer_or_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    label = {"label": lambda name, _: NAMES.index(name)}
    for number, (columns, words) in enumerate((
        ({"a": text, "b": text}, r"which of the columns \['a', 'b'\] is the text\? Say so by --text-columns a,b"),
        ({"text": text, "sentence": text}, r"which of the columns \['text', 'sentence'\] is the text"),
        ({"sentiment": lambda name, _: name.upper()}, "`sentiment` says the class"),
        ({"label_text": text}, "needs a column `image`, or columns of text"),
    )):  # fmt: skip
        with pytest.raises(BicoError, match=words):
            read(write(tmp_path / str(number) / "t", columns | label))
    folder = write(tmp_path / "t", {"text": text, "answer": lambda name, _: name, "label": lambda name, _: name})
    with pytest.raises(DataError, match="`answer` says the class"):
        read(folder, text_columns=["text", "answer"])
    with pytest.raises(UnknownTaskError, match="'label' is the column of classes"):
        read(folder, text_columns=["label"])


def test_numbers_are_named_by_a_second_column(tmp_path: Path) -> None:
    columns = {"text": text, "label": lambda name, _: NAMES.index(name), "label_text": lambda name, _: name}
    task = read(write(tmp_path / "t", columns))
    assert task.class_names == tuple(NAMES) and read_rightly(task)


def test_a_row_without_text_is_refused(tmp_path: Path) -> None:
    columns = {"text": lambda name, n: None if n == 2 else text(name, n), "label": lambda name, _: name}
    with pytest.raises(DataError, match=r"1 of 5 rows of the train split have no text in `text`, the first is row 2"):
        read(write(tmp_path / "t", columns))
