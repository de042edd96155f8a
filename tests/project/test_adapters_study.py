"""What the study of carried adapters makes of data and of rows."""

import csv
import json
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from benchmarks.adapters import texts
from benchmarks.adapters.table import COLUMNS, markdown, read, write_csv
from benchmarks.adapters.texts import write
from benchmarks.adapters.train import Recipe, train
from bico.adapters.files import read_adapter
from tests.tiny_decoder import write_decoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what PEFT calls


@pytest.fixture
def subj(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of the study with few texts, as it is put."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["objective", "subjective"])})
    (tmp_path / "subj").mkdir()
    for split, count in (("train", 12), ("test", 6)):
        table = {"text": [f"bake {n}" for n in range(count)], "label": [n % 2 for n in range(count)]}
        Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "subj" / f"{split}.parquet"))
    monkeypatch.setattr(texts, "MOST", {"train": 8, "test": 6})
    return write("subj", tmp_path, tmp_path / "texts")


def test_classes_become_completions_once(subj: Path) -> None:
    rows = [json.loads(line) for line in (subj / "test.jsonl").read_text().splitlines()]
    assert sorted((row["prompt"], row["completion"]) for row in rows) == [
        (f"subj sentence: bake {n} answer:", " subjective" if n % 2 else " objective") for n in range(6)
    ]
    assert len((subj / "train.jsonl").read_text().splitlines()) == 8
    (subj / "test.jsonl").write_text("kept")
    write("subj", subj.parents[1], subj.parent)
    assert (subj / "test.jsonl").read_text() == "kept"


def test_an_adapter_is_trained_by_its_recipe_and_found_again(subj: Path, tmp_path: Path) -> None:
    write_decoder(tmp_path / "base", 1)
    recipe = Recipe(("q_proj", "v_proj"), seed=0, rank=2, alpha=4, steps=3, batch_size=4)
    found = read_adapter(train(tmp_path / "base", subj, recipe, tmp_path / "lora"))
    assert len(found.modules) == 4 and {path.rpartition(".")[2] for path in found.modules} == {"q_proj", "v_proj"}
    assert all(update.rank == 2 and update.scale == 2 and update.up.any() for update in found.modules.values())
    again = train(tmp_path / "none", subj, recipe, tmp_path / "lora")
    assert torch.equal(*(next(iter(read_adapter(f).modules.values())).up for f in (tmp_path / "lora", again)))


def row(task: str, adapter: str, method: str, samples: int, seed: int | None, accuracy: float) -> dict:
    about = {"pair": "b", "task": task, "adapter": adapter, "method": method, "samples": samples, "seed": seed}
    return about | {"loss": accuracy / 100, "label accuracy": accuracy, "more": 1}


def test_tables_have_means_over_adapters_and_spreads_over_draws(tmp_path: Path) -> None:
    draws = [row(task, a, "bico", 64, s, 50 + 10 * s + 2 * (a == "x")) for task in "tu" for a in "xy" for s in (0, 1)]
    first = [row("t", "x", "zero-shot", 0, None, 20.0), row("u", "x", "zero-shot", 0, None, 30.0), *draws]
    (tmp_path / "b-t.json").write_text(json.dumps(first))
    (tmp_path / "b-u.json").write_text(json.dumps([*first[:1], row("t", "x", "theseus", 16, 0, 40.0)]))
    rows = read(tmp_path)
    assert len(rows) == len(first) + 1
    shown = markdown(rows, {"b": "a → b", "c": "a → c"}, "tu").splitlines()
    assert shown == [
        "## a → b", "", "| | N | t | u | mean |", "| --- | ---: | ---: | ---: | ---: |",
        "| target as it is | – | 20.0 (0.20) | 30.0 (0.30) | 25.0 (0.25) |",
        "| THESEUS | 16 | 40.0 (0.40) |  |  |",
        "| BiCo | 64 | 56.0 ± 7.1 (0.56 ± 0.07) | 56.0 ± 7.1 (0.56 ± 0.07) | 56.0 ± 7.1 (0.56 ± 0.07) |",
    ]  # fmt: skip
    write_csv(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as stream:
        assert next(tuple(one) for one in csv.DictReader(stream)) == COLUMNS
