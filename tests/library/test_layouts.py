"""Layouts of folders, and what is said of one: read rightly, or refused in one line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas
import pytest
import torch

from bico.data.labels import stratified
from bico.data.reading import Reading
from bico.data.tasks import check_folders, get_task
from bico.errors import BicoError, ConfigError, DataError, UnknownTaskError
from tests.own_data import NAMES, ROWS, SHADE, called, picture, read, read_rightly, seen, text, write

# Layouts ---------------------------------------------------------------------------------------------------------------


def table(split: str) -> dict[str, list[str]]:
    return {"text": [text(name, 0) for name in ROWS[split]], "label": ROWS[split]}


def delimited(path: Path, comma: str, split: str) -> None:
    rows = table(split)
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter=comma).writerows([["text", "label"], *zip(*rows.values(), strict=True)])


def lines(path: Path, split: str) -> None:
    rows = [dict(zip(table(split), row, strict=True)) for row in zip(*table(split).values(), strict=True)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def classes(folder: Path, split: str) -> None:
    for number, name in enumerate(ROWS[split]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture(name).save(folder / name / f"{number}.png")


def paths(folder: Path, split: str) -> None:
    """JSON lines that name pictures, relative to the file."""
    classes(folder / "pictures" / split, split)
    rows = [{"file_name": f"pictures/{split}/{name}/{n}.png", "label": name} for n, name in enumerate(ROWS[split])]
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def parquet(path: Path, split: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(table(split)).to_parquet(path)


def saved(folder: Path, split: str) -> None:
    datasets.Dataset.from_dict(table(split)).save_to_disk(folder / split)


LAYOUTS: dict[str, Callable[[Path, str], None]] = {
    "csv": lambda folder, split: delimited(folder / f"{split}.csv", ",", split),
    "semicolons": lambda folder, split: delimited(folder / f"{split}.csv", ";", split),
    "tsv": lambda folder, split: delimited(folder / f"{split}.tsv", "\t", split),
    "jsonl": lambda folder, split: lines(folder / f"{split}.jsonl", split),
    "named": lambda folder, split: lines(folder / f"topics_{split}.jsonl", split),
    "json": lambda folder, split: (folder / f"{split}.json").write_text(
        json.dumps({"data": pandas.DataFrame(table(split)).to_dict("records")})
    ),
    "classes": lambda folder, split: classes(folder / split, split),
    "capitals": lambda folder, split: classes(folder / split.title(), split),
    "paths": paths,
    "converted": lambda folder, split: parquet(folder / "default" / split / "0000.parquet", split),
    "by folder": lambda folder, split: parquet(folder / split / "any.parquet", split),
    "saved": saved,
    "packed": lambda folder, split: pandas.DataFrame(table(split)).to_csv(folder / f"{split}.csv.gz", index=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "t"
    folder.mkdir()
    for split in ROWS:
        LAYOUTS[layout](folder, split)
    task = read(folder)
    assert task.class_names == ("court", "sea", "wood") and read_rightly(task)
    assert task.about.keys() <= {"columns", "pictures"} and not task.notes


@pytest.mark.parametrize("held_out", ["validation", "val", "dev"])
def test_validation_stands_in_aloud_where_there_is_no_test_split(held_out: str, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    for split, name in (("train", "train"), ("test", held_out)):
        delimited(folder / f"{name}.csv", ",", split)
    task = read(folder)
    assert read_rightly(task) and f"there is no test split; `{held_out}` is measured on" in task.notes[0]
    delimited(folder / "test.csv", ",", "train")
    assert read(folder, test_split=held_out).sizes["test"] == 2
    with pytest.raises(UnknownTaskError, match=r"called 'other'; there is \w+, \w+, \w+"):
        read(folder, test_split="other")


@pytest.mark.parametrize("layout", ["classes", "table", "file", "saved", "train alone"])
def test_a_share_of_a_single_split_is_kept_for_testing(layout: str, tmp_path: Path) -> None:
    folder, rows = tmp_path / "t", [name for name in SHADE for _ in range(10)]
    frame = {"text": [f"{n} {name}" for n, name in enumerate(rows)], "label": rows}
    folder.mkdir()
    if layout == "classes":
        for n, name in enumerate(rows):
            (folder / name).mkdir(exist_ok=True)
            picture(name).save(folder / name / f"{n}.png")
    elif layout == "saved":
        datasets.Dataset.from_dict(frame).save_to_disk(folder)
    else:
        path = folder / {"file": "t.csv", "train alone": "train.csv", "table": "data.csv"}[layout]
        pandas.DataFrame(frame).to_csv(path, index=False)
        folder = path if layout == "file" else folder
    with pytest.raises(UnknownTaskError, match=r"there is no test split.* by --test-share 0\.2"):
        get_task("t", [folder])
    first, again, other = (get_task("t", [folder], Reading(test_share=0.2, test_seed=seed)) for seed in (0, 0, 1))
    for task in (first, other):
        assert torch.bincount(task.open("test").labels).tolist() == [2, 2, 2]
        assert torch.bincount(task.open("train").labels).tolist() == [8, 8, 8]
        assert all(called(task, split) == seen(task, split) for split in ROWS)
    assert first.identity == again.identity != other.identity
    if layout != "classes":
        shown = [
            {task.open(split).example(n) for n in range(task.sizes[split])} for task in (first, other) for split in ROWS
        ]
        assert not shown[0] & shown[1] and len(shown[0] | shown[1]) == 30 and shown[1] != shown[3]


def test_every_class_that_has_two_rows_is_in_both_parts() -> None:
    labels = torch.tensor([0] * 50 + [1] * 2 + [2] + [-1] * 3)
    train, test = stratified(labels, 0.1, 0)
    assert torch.bincount(labels[test]).tolist() == [5, 1] and torch.bincount(labels[train]).tolist() == [45, 1, 1]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train.csv": "", "test.csv": ""}, r"needs a column `label` of classes, has \[\]"),
        ({"train.csv": "text,label\na,b,c\n", "test.csv": ""}, r"train\.csv, line 2: 3 cells, and 2 columns"),
        ({"train.csv": "text,text\na,b\n", "test.csv": ""}, "two columns have one name"),
        ({"train.csv": b"text,label\n\xff,b\n", "test.csv": ""}, r"train\.csv, byte 11: is no UTF-8"),
        ({"train.jsonl": '{"text": "a"', "test.jsonl": ""}, r"train\.jsonl, line 1: is no JSON"),
        ({"train.jsonl": "[1]", "test.jsonl": ""}, "a row is an object such as"),
        ({"train.json": '{"a": [], "b": []}', "test.json": ""}, "holds several lists, a, b"),
        (
            {"train.parquet": "x", "test.parquet": "x"},
            r"the train split \(train\.parquet\) cannot be read: ArrowInvalid",
        ),
        ({"train.csv": "", "train.jsonl": "", "test.csv": ""}, r"may be any of train\.csv, train\.jsonl: keep one"),
        ({"a.csv": "", "b.csv": ""}, "no name says which is `train` and which `test`"),
        ({"notes.md": "x"}, r"no train\.parquet there but notes\.md"),
    ],
)
def test_what_cannot_be_read_is_named(files: dict[str, str | bytes], words: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BicoError, match=words) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_cells_of_a_table_are_what_they_say(tmp_path: Path) -> None:
    """`NA` and `None` are classes; a quotation mark in a file that quotes nothing is one."""
    folder = tmp_path / "t"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_text(
            'text\tlabel\n"so it goes\tNA\n5" wide\tNone\n\tNA\n'.replace("\n\tNA", "")
        )
    task = read(folder)
    assert task.class_names == ("NA", "None") and task.open("test").example(0) == 't text: "so it goes'


def test_moving_a_picture_to_another_class_changes_the_key(tmp_path: Path) -> None:
    for split in ROWS:
        classes(tmp_path / "1" / "t" / split, split)
        classes(tmp_path / "2" / "t" / split, split)
    first, again = (read(tmp_path / n / "t").identity for n in "12")
    assert first == again
    (tmp_path / "3").mkdir()
    (tmp_path / "2" / "t").rename(tmp_path / "3" / "t")
    (tmp_path / "3" / "t" / "train" / "sea" / "0.png").rename(tmp_path / "3" / "t" / "train" / "wood" / "0.png")
    assert read(tmp_path / "3" / "t").identity != first


# What is said of a folder ----------------------------------------------------------------------------------------------


def told(folder: Path, task_file: str) -> Path:
    LAYOUTS["csv"](folder, "train")
    LAYOUTS["csv"](folder, "test")
    (folder / "task.yaml").write_text(task_file)
    return folder


def test_an_option_wins_over_the_task_file_and_that_over_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    told(folder, "prompts: 'file: {text}'\nclass_names: {sea: the sea}\n")
    task = read(folder)
    assert task.open("test").example(0) == "file: of the wood" and task.class_names == ("court", "the sea", "wood")
    task = read(folder, prompts=["option {{x}}: {text}, {text}"])
    assert task.open("test").example(0) == "option {x}: of the wood, of the wood"
    assert task.class_names == ("court", "the sea", "wood")
    other = read(folder, class_names=["wood", "sea", "court"])  # their order
    assert other.class_names == ("wood", "sea", "court") and read_rightly(other)
    swapped = read(folder, class_names=["sea=wood", "wood=sea"])
    assert swapped.class_names == ("court", "wood", "sea") and called(swapped, "test") == ["sea", "court"]
    assert len({json.dumps(one.identity, sort_keys=True) for one in (task, other, swapped)}) == 3


@pytest.mark.parametrize(
    ("task_file", "words"),
    [
        ("prompt: a", "task.yaml: unknown key 'prompt'; did you mean 'prompts'"),
        ("- a", "task.yaml: holds no settings"),
        ("a: [", "task.yaml: cannot be read as YAML"),
        ("test_share: 2", "test_share=2 must lie between 0 and 1"),
        ("test_share: 0.5", "there is a test split already"),
        ("test_seed: -1", "test_seed=-1 must be a whole number"),
        ("text_columns: 3", "text_columns=3 must be a text, or a list of texts"),
        ("prompts: no text", r"the prompt 'no text' shows no text; put \{text\} into it"),
        ("prompts: '{label}'", r"has \{label\}; the columns of text are \{text\}"),
        ("prompts: '{text.__class__}'", "the columns of text are"),
        ("prompts: '{text'", "expected '}' before end of string; write {{ for a brace"),
        ("prompts: ['{text}', '{text}']", "texts are put once, and 2 prompts are given"),
        ("class_names: {ocean: sea}", "class_names renames 'ocean'; the classes are court, sea, wood"),
        ("class_names: [a, b, c]", "lists 3 names by place for the 3 classes court, sea, wood: say which is which"),
    ],
)
def test_a_task_file_that_means_nothing_is_refused(task_file: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BicoError, match=words) as caught:
        read(told(tmp_path, task_file))
    assert "\n" not in str(caught.value)


def test_numbered_classes_are_named_by_place(tmp_path: Path) -> None:
    columns = {"text": text, "label": lambda name, _: NAMES.index(name)}
    folder = write(tmp_path / "t", columns)
    assert read_rightly(read(folder, class_names=NAMES))
    more = read(folder, class_names=[*NAMES, "sky"])  # a class without rows
    assert more.class_names == (*NAMES, "sky") and read_rightly(more)
    with pytest.raises(DataError, match="lists 2 names by place for the 3 classes 0, 1, 2"):
        read(folder, class_names=NAMES[:2])


def test_braces_and_commas_are_letters_like_others(tmp_path: Path) -> None:
    folder = tmp_path / "a{b}, {0}"
    columns = {"text": text, "label": lambda name, _: f"{name}, {{{name}}}"}
    task = read(write(folder, columns))
    assert task.open("train").example(0) == "a{b}, {0} text: of the sea"
    assert task.class_names[1] == "sea, {sea}"
    pictures = {"image": lambda name, _: picture(name), "label": lambda name, _: f"{{{name}}}"}
    shown = read(write(tmp_path / "p", pictures), prompts=["a {}, {not here} {"])
    assert shown.prompts == ("a {}, {not here} {",)
    with pytest.raises(ConfigError, match=r"the prompt 'a cat' needs one \{\} where the class name goes"):
        read(tmp_path / "p", prompts=["a cat"])


def test_no_folder_is_ignored(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "a" / "pets", tmp_path / "b" / "pets"
    with pytest.raises(ConfigError, match="Two --data folders are called 'pets'"):
        get_task("pets", [mine, theirs])
    with pytest.raises(ConfigError, match="serves no task: its task is 'pets', and the tasks are digits"):
        check_folders(["digits"], [mine])
    check_folders(["digits", "hub:pets"], [mine, mine])
    said = Reading(label_column="x")
    with pytest.raises(ConfigError, match="label_column says how a --data folder is read, and there are 0"):
        check_folders(["digits"], [], said)
    with pytest.raises(ConfigError, match="and there are 2: give one folder, or write it into each folder's task.yaml"):
        check_folders(["pets", "x"], [mine, tmp_path / "x"], said)
