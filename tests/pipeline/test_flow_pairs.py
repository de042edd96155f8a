"""The thread on tiny encoders and pairs of texts without classes: the same stages, and another measure."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bico.errors import ConfigError
from bico.models.encoder.pairs import BANK
from flows.config import TransferConfig
from flows.plan import make_plan
from flows.single import evaluate_one, finetune_one
from flows.transfer import Result
from tasks.inputs import TaskRef, open_head
from tests.flow_setup import Bench
from tests.tiny_encoder import texts, write_encoder


def write_pairs(folder: Path, scored: bool, train: int = 40, test: int = 20) -> Path:
    folder.mkdir()
    for split, count, seed in (("train", train, 1), ("test", test, 3)):
        drawn = enumerate(zip(texts(count, seed), texts(count, seed + 1), strict=True))
        rows = [{"sentence1": a, "sentence2": b} | ({"score": n / count} if scored else {}) for n, (a, b) in drawn]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def encoders(bench: Bench) -> Bench:
    write_encoder(bench.folder / "a", 1)
    write_encoder(bench.folder / "b", 2, "mpnet", width=16)
    write_pairs(bench.folder / "faq", scored=False)
    write_pairs(bench.folder / "sts", scored=True)
    return bench


def settings(bench: Bench, task: str = "faq", **changes: object) -> dict:
    models = {"source": str(bench.folder / "a"), "target": str(bench.folder / "b")}
    asked = {"tasks": [task], "data": [bench.folder / task], "methods": ["bico"], "samples": [12, 24], "loss": "pairs"}
    return models | asked | {"test_limit": None} | changes


def run(bench: Bench, task: str = "faq", **changes: object) -> Result:
    return bench.run(**settings(bench, task, **changes))


def test_a_run_on_pairs_is_the_same_stages_measured_by_recall(encoders: Bench) -> None:
    first = run(encoders, baselines=True)
    computed = {stage: counts["computed"] for stage, counts in first.stages.items() if counts["computed"]}
    assert computed["measure-pairs"] == len(first.rows) and not {"probe", "evaluate"} & set(computed)
    assert {(str(row.method), row.budget.asked) for row in first.rows} == {
        *((method, n) for method in ("bico", "few-shot", "none+tune:steps=30") for n in (12, 24)),
        *((method, 0) for method in ("zero-shot", "fine-tuned", "expert")),
    }
    assert all(row.accuracy == pytest.approx(round(row.accuracy / 5) * 5) for row in first.rows)  # of 20 test pairs
    again = run(encoders, baselines=True, batch_size=5)
    assert again.rows == first.rows and not any(counts["computed"] for counts in again.stages.values())
    recorded = MlflowClient(first.outputs["mlflow"]["uri"]).get_run(first.outputs["mlflow"]["run"]).data
    assert recorded.params["loss"] == "pairs" and recorded.params["measured_by"] == "recall@1"
    assert Path(first.outputs["markdown"]).read_text().startswith("Test recall@1, in percent.")
    (folder,) = first.outputs["models"].values()
    assert "| test recall@1 on faq |" in (Path(folder) / "README.md").read_text()


def test_an_expert_of_scored_pairs_is_made_and_measured(encoders: Bench) -> None:
    out, asked = encoders.folder / "expert.safetensors", ("sts", [encoders.folder / "sts"])
    changes = {"steps": 30, "batch_size": 10, "lr": 3e-3, "warmup": 3}
    made = finetune_one(str(encoders.folder / "a"), *asked, changes, out, encoders.settings, loss="pairs")
    (row,) = made["rows"]
    assert row["by"] == "spearman"
    about = str(encoders.folder / "a"), ["sts"], asked[1]
    again = evaluate_one(*about, out, None, encoders.settings, loss="pairs")["rows"]
    assert again == [row]
    carried = run(encoders, "sts", expert=out, oracle=False, samples=[24])
    assert {str(r.method): r.accuracy for r in carried.rows}["expert"] == row["accuracy"]
    assert carried.outputs and all(-100 <= r.accuracy <= 100 for r in carried.rows)


def test_the_pairs_to_be_told_from_are_the_smallest_set(encoders: Bench) -> None:
    plan = make_plan(TransferConfig(**settings(encoders), out=encoders.folder / "out"), encoders.settings)
    task: TaskRef = plan.tasks["faq"]
    assert not plan.probed and plan.loss == "pairs" and plan.measured_by == "recall@1"
    bank = open_head(plan.source, "cpu", task, (3, 5, 8))
    assert bank.shape == (3, 25) and bank[:, -1].tolist() == [3, 5, 8]
    assert len(open_head(plan.source, "cpu", task)) == 40 < BANK
    scored = make_plan(TransferConfig(**settings(encoders, "sts"), out=encoders.folder / "out"), encoders.settings)
    assert scored.measured_by == "spearman" and len(open_head(scored.target, "cpu", scored.tasks["sts"])) == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sampling": "per-class"}, "no classes to choose by"),
        ({"unlabelled": 5}, "loss=pairs needs pairs"),
        ({"methods": ["bico+head"]}, "ends in a step that needs classes"),
        ({"expert": "expert", "expert_head": Path("head")}, "takes no classifier"),
    ],
)
def test_what_only_classes_have_is_refused(
    changes: dict, match: str, encoders: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "expert" in changes:
        changes = changes | {"expert": str(write_encoder(encoders.folder / "c", 1))}
        monkeypatch.setattr("flows.plan.read_expert", lambda *_: type("Read", (), {"notes": ()}))
    config = TransferConfig(**settings(encoders, **changes), out=encoders.folder / "out")
    with pytest.raises(ConfigError, match=match):
        make_plan(config, encoders.settings)
