"""Folders of texts that are completed: which column is what, chats, plain text, few completions as classes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from bico.data.completions import LONGEST_CHAT, completions_from_folder, get_completions
from bico.data.reading import make_reading
from bico.data.text import Chat, Completion
from bico.errors import BicoError, ConfigError, DataError, UnknownTaskError

ROWS = [{"prompt": f"is {n} even?", "completion": " yes" if n % 2 else " no"} for n in range(6)]
FREE = [{"prompt": f"say {n}:", "completion": f" {n}"} for n in range(6)]


def written(folder: Path, rows: list[dict[str, Any]], test: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", rows), ("test", rows if test is None else test)):
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in part) + "\n")
    return folder


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_few_completions_are_the_classes_of_a_task(tmp_path: Path) -> None:
    task = completions_from_folder(written(tmp_path / "even", ROWS))
    train = task.open("train")
    assert (task.name, task.class_names, task.modality, task.sizes["test"]) == ("even", (" no", " yes"), "text", 6)
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1] and task.notes == ()
    assert train.example(1) == Completion("is 1 even?", " yes")
    assert task.identity["completions"] == ["prompt", "completion"]
    strange = completions_from_folder(written(tmp_path / "odd", ROWS, [{"prompt": "?", "completion": " maybe"}]))
    assert strange.class_names == () and strange.open("test").labels.tolist() == [0]


def test_many_completions_have_no_classes(tmp_path: Path) -> None:
    task = completions_from_folder(written(tmp_path / "say", FREE))
    assert task.class_names == () and task.open("train").labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_table_says_the_same_and_an_empty_prompt_is_one(tmp_path: Path) -> None:
    (tmp_path / "say").mkdir()
    for split in ("train", "test"):
        (tmp_path / "say" / f"{split}.csv").write_text('prompt,completion\nsay 1:," 1"\n,"2, or 3"\nsay,so\n')
    task = completions_from_folder(tmp_path / "say")
    assert [task.open("test").example(n) for n in range(2)] == [Completion("say 1:", " 1"), Completion("", "2, or 3")]
    assert "in 1 of 3 rows nothing stands between prompt and completion" in task.notes[0]


def test_chats_and_plain_text(tmp_path: Path) -> None:
    rows = [chat(("user", f"{n}?"), ("assistant", "yes" if n % 2 else "no")) for n in range(4)]
    task = completions_from_folder(written(tmp_path / "chats", rows))
    assert task.open("train").example(1) == Chat((("user", "1?"), ("assistant", "yes")))
    assert task.class_names == ("no", "yes")
    texts = completions_from_folder(written(tmp_path / "texts", [{"text": "a b"}, {"text": "a b"}] * 2))
    assert texts.open("train").example(0) == Completion("", "a b", closed=False) and texts.class_names == ()


def test_columns_are_named_and_a_share_is_kept_for_testing(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"ask": f"q{n}?", "say": f" a{n}"}) for n in range(10)))
    reading = make_reading({"text_columns": ["ask", "say"], "test_share": 0.3}, "here")
    task = completions_from_folder(path, reading)
    assert (task.sizes["train"], task.sizes["test"]) == (7, 3)
    assert task.open("test").example(0).prompt[0] == "q" and task.identity["test_share"] == 0.3


@pytest.mark.parametrize(
    ("rows", "said", "error", "match"),
    [
        (
            [{"a": "x", "b": "y"}],
            {},
            UnknownTaskError,
            r"reads columns prompt and completion, or `messages`, or `text`",
        ),
        ([{"question": "x", "answer": "y", "input": "x", "output": "y"}], {}, UnknownTaskError, "name them by"),
        (FREE, {"text_columns": ["prompt", "anwser"]}, UnknownTaskError, "no column is called 'anwser'"),
        (
            FREE,
            {"text_columns": ["prompt", "completion", "prompt "]},
            UnknownTaskError,
            "no column is called 'prompt '",
        ),
        (FREE, {"class_names": ["a"]}, ConfigError, "leave out class_names"),
        ([*FREE, {"prompt": "x", "completion": " "}], {}, DataError, r"row 6 \(from 0\) has nothing in `completion`"),
        ([*FREE, {"prompt": "x"}], {}, DataError, r"row 6 \(from 0\) has nothing in `completion`"),
        ([chat(("user", "a"))], {}, DataError, "the assistant says nothing"),
        ([chat(("user", "a"), ("assistant", " "))], {}, DataError, "the assistant says nothing"),
        ([chat(("bot", "a"), ("assistant", "b"))], {}, DataError, r"message 0 \(from 0\) needs a role of system"),
        ([chat(*[("assistant", "b")] * (LONGEST_CHAT + 1))], {}, DataError, "is no list of up to 200 messages"),
    ],
)
def test_what_cannot_be_completed_is_refused(
    rows: list[dict[str, Any]], said: dict[str, Any], error: type[BicoError], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        completions_from_folder(written(tmp_path / "bad", rows), make_reading(said, "here"))


def test_completions_come_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownTaskError, match="reads prompts and completions from a folder, and there is none for 'say'"
    ):
        get_completions("say", {"other": tmp_path})
