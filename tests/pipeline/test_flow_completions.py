"""Decoders on the command line alone: an expert is made, measured and carried, and what is written is a model of transformers."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from prefect.settings import PREFECT_API_URL
from transformers import AutoModelForCausalLM

from bico.errors import ConfigError, DataError
from flows.config import TransferConfig
from flows.planning.plan import make_plan
from flows.settings import Settings
from tests.command import run
from tests.tiny_completions import settings, write_all
from tests.tiny_decoder import write_decoder

TUNED = ["--steps", "25", "--batch-size", "8", "--lr", "3e-3", "--warmup", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("completions"))


def test_an_expert_is_made_measured_and_carried_by_three_commands(
    folder: Path,
    api: None,
    scheduler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BICO_DASK_SCHEDULER", scheduler)
    assert PREFECT_API_URL.value()
    old, new, data = (str(folder / name) for name in ("a", "b", "choose"))
    expert = str(tmp_path / "expert.safetensors")

    def rows(*command: str) -> dict:
        assert run([*command, "--json"], monkeypatch) == 0
        return json.loads(capsys.readouterr().out)

    asked = ["--task", "choose", "--data", data]
    (made,) = rows("finetune", old, *asked, *TUNED, "--out", expert)["rows"]
    (before,) = rows("evaluate", old, *asked)["rows"]
    assert made["by"] == before["by"] == "label accuracy"
    assert made["measures"]["loss"] < before["measures"]["loss"] - 1
    (tmp_path / "brief.yaml").write_text(yaml.safe_dump({"methods": ["bico"], "oracle": False}))
    more = ["--samples", "16", "--seeds", "0", "--expert", expert, "--config", str(tmp_path / "brief.yaml")]
    found = rows("transfer", "--source", old, "--target", new, *asked, *more, "--out", str(tmp_path / "out"))
    measured = {row["method"]: row["accuracy"] for row in found["rows"]}
    assert {"zero-shot", "bico", "source", "expert"} <= set(measured)
    assert measured["expert"] == pytest.approx(made["accuracy"])
    (written,) = found["outputs"]["models"].values()
    model = AutoModelForCausalLM.from_pretrained(written)
    target = AutoModelForCausalLM.from_pretrained(new)
    changed = [
        n for (n, p), q in zip(model.named_parameters(), target.parameters(), strict=True) if not torch.equal(p, q)
    ]
    assert len(changed) == 2 * 7 and all("_proj" in name for name in changed)
    card = (Path(written) / "README.md").read_text()
    assert "| test label accuracy on choose |" in card and "library_name: transformers" in card
    (again,) = rows("evaluate", written, *asked)["rows"]
    assert again["accuracy"] == pytest.approx(measured["bico"])


def test_a_plan_knows_how_completions_are_measured(folder: Path, tmp_path: Path) -> None:
    place = Settings(home=tmp_path / "home", device="cpu")
    for task, measure in (("choose", "label accuracy"), ("free", "token accuracy")):
        plan = make_plan(TransferConfig(**settings(folder, task), out=tmp_path / "out"), place)
        assert (plan.loss, plan.measured_by, plan.probed) == ("completion", measure, False)
    by_class = settings(folder, sampling="per-class", samples=[3])
    assert make_plan(TransferConfig(**by_class, out=tmp_path / "out"), place).tasks["choose"].open().class_names


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"task": "free", "sampling": "per-class"}, "no few completions to choose by"),
        ({"unlabelled": 5}, "loss=completion needs them"),
        ({"methods": ["bico+head"]}, "ends in a step that needs classes"),
        ({"loss": "pairs"}, "has no such loss|needs two columns of text"),
    ],
)
def test_what_only_classes_have_is_refused(changes: dict, match: str, folder: Path, tmp_path: Path) -> None:
    config = TransferConfig(**settings(folder, **changes), out=tmp_path / "out")
    with pytest.raises((ConfigError, LookupError), match=match):
        make_plan(config, Settings(home=tmp_path / "home", device="cpu"))


def test_prompts_that_leave_no_room_are_refused_and_cut_ends_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, rows = Settings(home=tmp_path / "home", device="cpu"), tmp_path / "long"
    rows.mkdir()
    for split in ("train", "test"):
        lines = [{"prompt": "li", "completion": " bake" * 60}, {"prompt": "ke", "completion": " mo"}]
        (rows / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = settings(folder, "long") | {"data": [rows], "samples": [2]}
    make_plan(TransferConfig(**asked, out=tmp_path / "out"), place)
    assert "reads 48 tokens: of the first 2 samples of long 1 are longer" in capsys.readouterr().err
    lines[0] = {"prompt": "bake " * 60, "completion": " mo"}
    (rows / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    other = tmp_path / "longer"
    rows.rename(other)
    with pytest.raises(DataError, match="nothing of the completion"):
        make_plan(TransferConfig(**asked | {"tasks": ["longer"], "data": [other]}, out=tmp_path / "out"), place)


def test_a_family_without_completions_is_told_so(folder: Path, tmp_path: Path) -> None:
    from tests.tiny_encoder import write_encoder

    encoder = str(write_encoder(tmp_path / "encoder", 1))
    asked = settings(folder, source=encoder, target=encoder, loss="completion")
    with pytest.raises(ConfigError, match="loss=completion: .* has no such loss"):
        make_plan(TransferConfig(**asked, out=tmp_path / "out"), Settings(home=tmp_path / "home", device="cpu"))
    assert write_decoder(tmp_path / "c", 1).is_dir()
