"""Folders of text pairs without classes: which column is what, groups of pairs that share a text, scores, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from bico.data.pairs import get_pairs, pairs_from_folder
from bico.data.reading import make_reading
from bico.data.text import Pair
from bico.errors import BicoError, ConfigError, DataError, UnknownTaskError

ROWS = [("a", "x"), ("b", "y"), ("a", "z"), ("c", "w")]


def written(folder: Path, rows: list[dict], test: list[dict] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", rows), ("test", rows if test is None else test)):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in part) + "\n")
    return folder


def together() -> list[dict]:
    return [{"anchor": first, "positive": second} for first, second in ROWS]


def scored(*scores: object) -> list[dict]:
    return [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": score} for n, score in enumerate(scores)]


def test_pairs_that_belong_together_have_groups(tmp_path: Path) -> None:
    task = pairs_from_folder(written(tmp_path / "faq", together()))
    train = task.open("train")
    assert (task.name, task.class_names, task.modality, task.sizes["test"]) == ("faq", (), "text", 4)
    assert [train.example(n) for n in range(4)] == [Pair(*row) for row in ROWS]
    assert train.labels.tolist() == [0, 1, 0, 3] and train.labels.dtype == torch.int64
    assert task.identity["pairs"] == ["anchor", "positive"] and task.identity["score"] is None


def test_a_table_says_the_same_in_csv(tmp_path: Path) -> None:
    lines = "sentence1,sentence2,score\none,two,0.25\nthree,four,1\n"
    (tmp_path / "sts").mkdir()
    for split in ("train", "test"):
        (tmp_path / "sts" / f"{split}.csv").write_text(lines)
    task = pairs_from_folder(tmp_path / "sts")
    assert task.open("test").labels.tolist() == [0.25, 1.0]
    assert task.open("test").example(1) == Pair("three", "four") and task.notes == ()


def test_scores_of_another_range_are_brought_to_0_to_1_by_the_training_split(tmp_path: Path) -> None:
    task = pairs_from_folder(written(tmp_path / "sts", scored(0, 5, 1), scored(2.5, 4)))
    assert task.open("train").labels.tolist() == pytest.approx([0, 1, 0.2])
    assert task.open("test").labels.tolist() == pytest.approx([0.5, 0.8])
    assert task.identity["score_range"] == [0, 5] and "scores from 0 to 5 are brought to 0 to 1" in task.notes[0]
    negative = pairs_from_folder(written(tmp_path / "cosines", scored(-1, 0.5)))
    assert negative.open("train").labels.tolist() == [-1, 0.5] and negative.notes == ()


def test_a_share_of_a_single_split_is_kept_for_testing(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text("\n".join(json.dumps({"query": f"q{n}", "passage": f"p{n}"}) for n in range(10)))
    task = pairs_from_folder(path, make_reading({"test_share": 0.3}, "here"))
    parts = {
        split: {task.open(split).example(n).first for n in range(task.sizes[split])} for split in ("train", "test")
    }
    assert len(parts["train"]) == 7 and len(parts["test"]) == 3 and not parts["train"] & parts["test"]
    other = pairs_from_folder(path, make_reading({"test_share": 0.3, "test_seed": 1}, "here"))
    assert other.identity != task.identity


def test_named_columns_win(tmp_path: Path) -> None:
    rows = [{"left": "a", "right": "x", "label": 0.5}, {"left": "b", "right": "y", "label": 0.25}]
    reading = make_reading({"text_columns": ["right", "left"], "label_column": "label"}, "here")
    split = pairs_from_folder(written(tmp_path / "mine", rows), reading).open("train")
    assert split.example(0) == Pair("x", "a") and split.labels.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("rows", "said", "error", "match"),
    [
        ([{"left": "a", "right": "b"}] * 2, {}, UnknownTaskError, "needs two columns of text"),
        (together(), {"text_columns": ["anchor"]}, UnknownTaskError, "needs two columns of text"),
        (together(), {"label_column": "close"}, UnknownTaskError, "no column is called 'close'"),
        ([row | {"label": 1} for row in together()], {}, UnknownTaskError, "`label` may say that texts do not belong"),
        (together(), {"prompts": "a {}"}, ConfigError, "leave out prompts"),
        (
            [*together(), {"anchor": "d", "positive": None}],
            {},
            DataError,
            r"row 4 \(from 0\) lacks one of its two texts",
        ),
        (scored(0.1, "much"), {}, DataError, "must be a number, and is 'much'"),
        (scored(0.1, None), {}, DataError, "must be a number, and is 'None'"),
        (scored(0.5, 0.5), {}, DataError, "`score` is the same in all rows"),
        (together()[:1], {}, DataError, "all pairs share texts"),
        (together(), {"test_share": 0.5}, UnknownTaskError, "there is a test split already"),
    ],
)
def test_what_cannot_be_pairs_is_refused(
    rows: list[dict], said: dict, error: type[BicoError], match: str, tmp_path: Path
) -> None:
    for row in rows:
        if isinstance(row.get("score"), float) and any(isinstance(other.get("score"), str) for other in rows):
            row["score"] = str(row["score"])
    with pytest.raises(error, match=match):
        pairs_from_folder(written(tmp_path / "bad", rows), make_reading(said, "here"))


def test_pairs_come_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownTaskError, match="there is none for 'sts'"):
        get_pairs("sts", {"faq": tmp_path})
