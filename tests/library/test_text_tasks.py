"""Text tasks: from folders and from local copies of the hub's data sets. No network."""

import re
from pathlib import Path

import datasets
import pytest
import torch

from bico.data import text_hub
from bico.data.base import Prepared, check_modality
from bico.data.tasks import get_task
from bico.data.text import FORMS
from bico.data.text_hub import TEXT_HUB
from bico.errors import ConfigError, DataError, UnknownTaskError
from tests.tiny_t5 import tiny_t5

NLI = ["entailment", "neutral", "contradiction"]


def write(folder: Path, labels: list[str], columns: dict[str, list[str]], targets: list[int], **files: str) -> Path:
    """Writes train.parquet and test.parquet, or the splits under other names."""
    features = datasets.Features(
        {name: datasets.Value("string") for name in columns} | {"label": datasets.ClassLabel(names=labels)}
    )
    for split in ("train", "test"):
        path = folder / files.get(split, f"{split}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns | {"label": targets}, features=features).to_parquet(path)
    return folder


def pairs(first: str, second: str, count: int = 4) -> dict[str, list[str]]:
    return {first: [f"p{n}" for n in range(count)], second: [f"h{n}" for n in range(count)]}


def test_the_forms_are_whole() -> None:
    assert set(TEXT_HUB) == {"mnli", "qnli", "rte", "qqp", "snli"} <= set(FORMS)
    for name, form in FORMS.items():
        assert form.prompt.startswith(f"{name} ")
        assert all(form.prompt.count(f"{{{n}}}") == 1 for n in range(len(form.columns[0])))
        assert len(form.answers or form.labels) == len(form.labels)
    for spec in TEXT_HUB.values():
        assert re.fullmatch(r"[0-9a-f]{40}", spec.revision)


def test_a_folder_of_a_known_task_is_put_in_its_form(tmp_path: Path) -> None:
    task = get_task("snli", [write(tmp_path / "snli", NLI, pairs("premise", "hypothesis"), [0, 1, 2, 0])])
    assert (task.modality, task.class_names) == ("text", tuple(NLI))
    train = task.open("train")
    assert train.example(2) == "snli hypothesis: h2 premise: p2" and train.labels.tolist() == [0, 1, 2, 0]
    assert task.identity["prompts"] == ["snli hypothesis: {1} premise: {0}"]


@pytest.mark.parametrize("columns", [("sentence1", "sentence2"), ("premise", "hypothesis")])
def test_columns_may_have_either_name(tmp_path: Path, columns: tuple[str, str]) -> None:
    folder = write(tmp_path / "rte", ["entailment", "not_entailment"], pairs(*columns), [0, 1, 1, 0])
    assert get_task("rte", [folder]).open("test").example(1) == "rte sentence1: p1 sentence2: h1"


def test_classes_have_words_of_their_own(tmp_path: Path) -> None:
    labels = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
    task = get_task("trec", [write(tmp_path / "trec", labels, {"text": ["Who ?"]}, [3])])
    assert task.class_names[task.open("train").labels[0]] == "human"


def test_a_folder_of_another_name_is_put_by_its_columns(tmp_path: Path) -> None:
    task = get_task("mail", [write(tmp_path / "mail", ["ham", "spam"], {"subject": ["Hi"], "body": ["you"]}, [1])])
    assert task.open("train").example(0) == "mail subject: Hi body: you" and task.class_names == ("ham", "spam")


def test_rows_without_label_are_left_out(tmp_path: Path) -> None:
    task = get_task("snli", [write(tmp_path / "snli", NLI, pairs("premise", "hypothesis"), [0, -1, 2, -1])])
    train = task.open("train")
    assert task.sizes["train"] == len(train) == 2 and train.labels.tolist() == [0, 2]
    assert train.example(1) == "snli hypothesis: h2 premise: p2"


def test_a_local_copy_of_a_hub_task_is_measured_on_the_split_with_labels(tmp_path: Path) -> None:
    """As `hf download nyu-mll/glue --include 'mnli/*'` leaves it: a test split is there, and hides its labels."""
    names = {"train": "mnli/train-00000-of-00001.parquet", "test": "mnli/validation_matched-00000-of-00001.parquet"}
    folder = write(tmp_path / "mnli", NLI, pairs("premise", "hypothesis"), [0, 1, 2, 0], **names)
    (folder / "mnli" / "test-00000-of-00001.parquet").write_bytes(b"no labels")
    task = get_task("hub:mnli", [folder])
    assert task.open("test").labels.tolist() == [0, 1, 2, 0]
    assert (
        get_task("hub:snli", [write(tmp_path / "snli", NLI, pairs("premise", "hypothesis", 1), [0])]).sizes["test"] == 1
    )


def test_a_hub_task_is_fetched_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    names = {"train": "qnli/train-0.parquet", "test": "qnli/validation-0.parquet"}
    labels = ["entailment", "not_entailment"]
    write(tmp_path, labels, pairs("question", "sentence"), [1, 0, 1, 0], **names)
    write(tmp_path, labels, pairs("a", "b", 1), [0], train="rte/train-0.parquet", test="rte/validation-0.parquet")
    monkeypatch.setattr(text_hub, "fetch", lambda *about: asked.append(about) or tmp_path)
    task = get_task("qnli")
    assert task.class_names == ("entailment", "not_entailment") and task.revision.startswith("nyu-mll/glue/qnli@bcdc")
    assert not asked
    assert task.open("test").example(0) == "qnli question: p0 sentence: h0" and task.sizes["train"] == 4
    assert asked == [
        ("qnli", "nyu-mll/glue", TEXT_HUB["qnli"].revision, ["qnli/train-*.parquet", "qnli/validation-*.parquet"])
    ]


def test_what_a_table_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownTaskError, match=r"snli needs the columns of text premise and hypothesis, has \['a', 'b'"
    ):
        get_task("snli", [write(tmp_path / "1" / "snli", NLI, pairs("a", "b"), [0, 1, 2, 0])])
    with pytest.raises(
        DataError, match="classes entailment, neutral, contradiction, in this order; here they are neut"
    ):
        get_task("snli", [write(tmp_path / "2" / "snli", sorted(NLI)[::-1], pairs("premise", "hypothesis"), [0] * 4)])


def test_texts_of_different_lengths_are_put_into_one_batch(tmp_path: Path) -> None:
    words = {"text": ["red", "red green blue", "no yes"]}
    task, model = get_task("mail", [write(tmp_path / "mail", ["a", "b"], words, [0, 1, 0])]), tiny_t5(1)
    data = Prepared(task.open("train"), model.prepare, model.stack)
    inputs, labels = data.batch(torch.tensor([1, 0]))
    assert inputs.shape[0] == 2 and labels.tolist() == [1, 0]
    assert torch.equal(inputs, model.prepare([task.open("train").example(n) for n in (1, 0)]))


def test_a_model_is_not_shown_what_it_cannot_read() -> None:
    with pytest.raises(ConfigError, match="zoo:x reads texts, and the examples of task 'digits' are pictures"):
        check_modality(get_task("digits"), "zoo:x", "text")
