"""The thread on tiny T5s: the same stages, and probes in place of heads."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from bico.errors import ConfigError, MethodError
from bico.evaluation.probe import fit_probe
from bico.models.loading import load, resolve
from bico.task_vector import subtract
from flows.planning.plan import make_plan
from flows.transfer import Result
from tests.flow_setup import SHORT, Bench
from tests.tiny_t5 import WORDS, write_colours, write_t5

WIDE = {"heads": 3, "d_ff": 30, "gated": True}


def with_texts(bench: Bench) -> Bench:
    write_colours(bench.folder / "colours")
    write_t5(bench.folder / "t5-a", 1, **WIDE)
    write_t5(bench.folder / "t5-b", 2, d_model=16, gated=True)
    return bench


@pytest.fixture
def words(bench: Bench) -> Bench:
    """A bench of texts."""
    return with_texts(bench)


@pytest.fixture(scope="session")
def first_texts(
    api: None, releases: dict[str, Path], scheduler: str, runs_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    """A bench of texts after `run`."""
    bench = with_texts(Bench(releases, tmp_path_factory.mktemp("texts"), scheduler, runs_database))
    bench.first = run(bench)
    return bench


@pytest.fixture
def words_ran(words: Bench, first_texts: Bench) -> Bench:
    """A bench of texts in whose home `run` has been made."""
    return words.after(first_texts)


def run(bench: Bench, **changes: object) -> Result:
    return bench.run(**settings(bench, **changes))


def settings(bench: Bench, **changes: object) -> dict:
    about = {"source": str(bench.folder / "t5-a"), "target": str(bench.folder / "t5-b"), "tasks": ["colours"]}
    return about | {"data": [bench.folder / "colours"], "methods": ["bico"], "samples": [12, 24]} | changes


def computed(result: Result) -> dict[str, int]:
    return {stage: counts["computed"] for stage, counts in result.stages.items() if counts["computed"]}


def test_a_run_is_the_same_stages_with_probes(words_ran: Bench) -> None:
    first = words_ran.first
    assert computed(first) == {
        "fine-tune": 2,
        "collect-activations": 1,
        "collect-gradients": 1,
        "procrustes": 2,
        "transfer": 2,
        "probe": 4 + 2 + 3,  # target and source at two N, BiCo at two, three references
    }
    assert {(str(row.method), row.budget.asked) for row in first.rows} == {
        *((method, n) for method in ("target-probe", "source-probe", "bico") for n in (12, 24)),
        *((method, 0) for method in ("full-data", "fine-tuned", "expert")),
    }
    assert computed(run(words_ran)) == {}
    assert computed(run(words_ran, test_limit=20)) == {"probe": 9}
    uri, parent = first.outputs["mlflow"]["uri"], first.outputs["mlflow"]["run"]
    recorded = MlflowClient(uri).get_run(parent).data
    assert recorded.params["loss"] == "probe" and recorded.params["measured_by"] == "probe"
    assert "over target probe" in Path(first.outputs["markdown"]).read_text()


def test_the_loss_is_a_setting_that_reaches_what_depends_on_it(words_ran: Bench) -> None:
    text = run(words_ran, loss="text")
    again = {"fine-tune": 2, "collect-activations": 1, "collect-gradients": 1, "procrustes": 2, "transfer": 2}
    assert computed(text) == again | {"probe": 4}  # not those of models as they are
    params = MlflowClient(text.outputs["mlflow"]["uri"]).get_run(text.outputs["mlflow"]["run"]).data.params
    assert params["loss"] == "text"


def test_a_probe_sees_the_calibration_samples_and_no_others(words_ran: Bench) -> None:
    result = words_ran.first
    (drawn,) = json.loads(Path(result.outputs["calibration"]).read_text())
    model = load(resolve(str(words_ran.folder / "t5-b")))
    train, test = (datasets.load_dataset("parquet", data_files=str(words_ran.folder / f"colours/{s}.parquet"),
                                         cache_dir=str(words_ran.folder / "cache"))["train"]
                   for s in ("train", "test"))  # fmt: skip
    chosen = drawn["indices"][:12]
    put = [f"colours text: {text}" for text in train["text"]]
    features = model.features(model.prepare([put[n] for n in chosen]))
    probe = fit_probe(features, torch.tensor([train["label"][n] for n in chosen]), 3)
    shown = model.features(model.prepare([f"colours text: {text}" for text in test["text"][:30]]))
    right = probe.scores(shown).argmax(1) == torch.tensor(test["label"][:30])
    (found,) = [row.accuracy for row in result.rows if (str(row.method), row.budget.asked) == ("target-probe", 12)]
    assert found == pytest.approx(100 * right.double().mean().item())


def test_the_model_that_is_written_is_the_target_with_the_vector(words_ran: Bench) -> None:
    folder = Path(run(words_ran, export="all").outputs["models"]["colours-bico-n24-seed0"])
    written, target = (load(resolve(str(place))) for place in (folder, words_ran.folder / "t5-b"))
    vector = load_file(folder / "task-vector.safetensors")
    moved = subtract(written.state(), target.state())
    assert set(vector) == {site.weight.parameter for site in target.sites}
    for name, change in moved.items():
        torch.testing.assert_close(change, vector.get(name, torch.zeros_like(change)), atol=1e-6, rtol=1e-4)
    assert torch.equal(written.model.shared.weight, target.model.shared.weight)
    assert written.vocabulary == target.vocabulary


def test_an_expert_of_ones_own_is_adopted(words: Bench, tmp_path: Path) -> None:
    model = load(resolve(str(words.folder / "t5-a"))).model
    for parameter in model.encoder.block.parameters():
        parameter.data += 0.01
    model.save_pretrained(tmp_path / "expert")
    result = run(words, samples=[12], expert=tmp_path / "expert/model.safetensors", oracle=False)
    assert computed(result)["adopt-expert"] == 1 and "fine-tune" not in computed(result)
    assert {str(row.method) for row in result.rows} == {"target-probe", "source-probe", "bico", "source", "expert"}


def test_a_method_without_calibration_is_probed_at_every_n(words: Bench) -> None:
    result = run(words, methods=["bico", "naive"], source=str(words.folder / "t5-b"))
    assert computed(result)["transfer"] == 3
    assert [row.budget.asked for row in result.rows if str(row.method) == "naive"] == [12, 24]


def test_what_does_not_fit_together_is_refused_before_any_work(words: Bench) -> None:
    def plan(**changes: object) -> None:
        make_plan(words.config(**settings(words, **changes)), words.settings)

    with pytest.raises(ConfigError, match="loss=probes: .*t5-a has no such loss; did you mean 'probe'"):
        plan(loss="probes")
    with pytest.raises(ConfigError, match="t5-a reads texts, and the examples of task 'digits' are pictures"):
        plan(tasks=["digits"], data=[])
    with pytest.raises(ConfigError, match="reads pictures, and the examples of task 'colours' are texts"):
        plan(source=str(words.releases["a"]), target=str(words.releases["b"]))
    with pytest.raises(MethodError, match="have different tokenizers"):
        plan(target=str(write_t5(words.folder / "other", 2, WORDS[1:], gated=True)))
    with pytest.raises(ConfigError, match="loss=text: .*a has no such loss"):
        make_plan(words.config(loss="text"), words.settings)
    plan(finetune=SHORT)
