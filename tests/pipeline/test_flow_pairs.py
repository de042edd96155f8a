"""The thread on tiny encoders and pairs of texts without classes: the same stages, and another measure."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.single import evaluate_one, finetune_one
from flows.transfer import Result
from tests.flow_setup import Bench
from tests.tiny_pairs import settings, write_all


@pytest.fixture
def encoders(bench: Bench) -> Bench:
    write_all(bench.folder)
    return bench


def run(bench: Bench, task: str = "faq", **changes: object) -> Result:
    return bench.run(**settings(bench.folder, task, **changes))


def test_a_run_on_pairs_is_the_same_stages_measured_by_recall(encoders: Bench) -> None:
    first = run(encoders, baselines=True, export="best")
    computed = {stage: counts["computed"] for stage, counts in first.stages.items() if counts["computed"]}
    assert (
        computed["measure-pairs"] == len(first.rows)
        and computed["validate"] == 7
        and not {"probe", "evaluate"} & set(computed)
    )
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
