"""An expert that is a `...ForSequenceClassification`: its own head is the source's loss, and what it is measured by."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.schemas import State
from prefect.logging import disable_run_logger
from transformers import AutoModelForSequenceClassification

from bico.errors import CheckpointError, ConfigError
from bico.models.encoder.classifier import ClassifiedEncoder
from flows.config import TransferConfig
from flows.planning.plan import Plan, make_plan
from flows.settings import Settings
from flows.single import plan_evaluate
from tasks.artefacts import read_accuracy
from tasks.evaluate import evaluate_model
from tasks.finetune import adopt_expert
from tasks.inputs import open_head, open_model
from tests.tiny_encoder import config_of, texts, tiny_encoder, write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders, an expert of the first with its classes in another order than the data's, and data."""
    root = tmp_path_factory.mktemp("trained")
    write_encoder(root / "a", 1)
    write_encoder(root / "b", 2, "mpnet", width=16)
    config, model = config_of("bert"), tiny_encoder(1, dtype=torch.float32)
    config.id2label = {0: "Right", 1: "left"}
    torch.manual_seed(5)
    whole = AutoModelForSequenceClassification.from_config(config)
    whole.bert.load_state_dict(model.model.state_dict(), strict=False)
    with torch.no_grad():
        for parameter in whole.bert.encoder.parameters():
            parameter += 0.1 * parameter.std() * torch.randn_like(parameter) * (parameter.ndim == 2)
    whole.save_pretrained(root / "expert")
    (root / "sides").mkdir()
    for split, count, seed in (("train", 40, 1), ("test", 30, 9)):
        rows = [{"text": text, "label": "left" if "ba" in text else "right"} for text in texts(count, seed)]
        (root / "sides" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def plan(folder: Path, **changes: Any) -> Plan:
    about = {"source": str(folder / "a"), "target": str(folder / "b"), "tasks": ["sides"], "data": [folder / "sides"]}
    about |= {"methods": ["bico+head"], "samples": [10], "baselines": False, "out": folder / "out"}
    about |= {"expert": folder / "expert", "expert_head": folder / "expert"}
    return make_plan(TransferConfig(**about | changes), Settings(home=folder / "home", device="cpu"))


def test_the_source_gets_the_head_and_both_read_the_first_token(folder: Path) -> None:
    made = plan(folder)
    source, target = open_model(made.source, "cpu"), open_model(made.target, "cpu")
    assert isinstance(source, ClassifiedEncoder) and not isinstance(target, ClassifiedEncoder)
    assert source.recipe.pooling == target.recipe.pooling == ("cls",) and len(made.notes) >= 2
    task = made.tasks["sides"]
    assert open_head(made.source, "cpu", task).tolist() == [1, 0]  # left stands second in the expert
    assert open_head(made.target, "cpu", task, (0, 1, 2, 3)).shape == (2, 17)
    other = plan(folder, expert_head=None)
    assert other.source.digest() != made.source.digest() and open_model(other.target, "cpu").recipe.pooling == ("mean",)
    assert plan(folder, pooling="mean").target == other.target  # what was asked for wins


def test_pooling_is_asked_for_where_a_model_is_measured_as_where_it_is_carried(folder: Path) -> None:
    place = Settings(home=folder / "home", device="cpu")
    found = plan_evaluate(str(folder / "a"), ["sides"], [folder / "sides"], None, place, pooling="cls")
    assert open_model(found.model, "cpu").recipe.pooling == ("cls",)
    with pytest.raises(ConfigError, match="--pooling cls: zoo:mini-a is no text encoder"):
        plan_evaluate("zoo:mini-a", ["digits"], [], None, place, pooling="cls")


def test_the_expert_is_measured_as_transformers_measures_it(folder: Path) -> None:
    made = plan(folder)
    task, space = made.tasks["sides"], made.space
    with disable_run_logger():
        expert = adopt_expert.fn(space, made.source, str(folder / "expert"))
        expert = expert.data if isinstance(expert, State) else expert
        done = evaluate_model.fn(space, made.source, task, expert.ref)
    done = done.data if isinstance(done, State) else done
    whole = AutoModelForSequenceClassification.from_pretrained(folder / "expert").eval()
    data = task.open().open("test")
    tokenizer = open_model(made.source, "cpu").tokenizer
    shown = [str(data.example(n)) for n in range(len(data))]
    asked = tokenizer(shown, padding=True, truncation=True, return_tensors="pt")
    asked.pop("token_type_ids", None)
    said = [whole.config.id2label[int(n)].lower() for n in whole(**asked).logits.argmax(1)]
    right = [name == task.open().class_names[label] for name, label in zip(said, data.labels.tolist(), strict=True)]
    assert 0 < sum(right) < len(right)
    assert read_accuracy(done.ref) == pytest.approx(100 * sum(right) / len(right))


def test_heads_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no classification head"):
        plan(folder, expert_head=folder / "a")
    about = json.loads((folder / "expert" / "config.json").read_text())
    for labels, words in (
        ({"0": "up", "1": "down"}, "calls its classes up, down and task 'sides' left, right: name them alike"),
        ({"0": "left", "1": "right", "2": "none"}, "has 3 classes and task 'sides' 2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(about | {"id2label": labels}))
        (tmp_path / "model.safetensors").write_bytes((folder / "expert" / "model.safetensors").read_bytes())
        with pytest.raises(ConfigError, match=words):
            plan(folder, expert_head=tmp_path)
    with pytest.raises(ConfigError, match="is a folder, and zoo:mini-a takes no head of its library"):
        plan_evaluate("zoo:mini-a", ["digits"], [], None, Settings(home=folder / "home"), head=folder / "expert")
    with pytest.raises(ConfigError, match="is no text encoder, which would pool"):
        plan(
            folder, source="zoo:mini-a", target="zoo:mini-l", tasks=["digits"], data=[], expert_head=None, pooling="cls"
        )


def test_several_strengths_are_methods_of_their_own(folder: Path) -> None:
    made = plan(folder, methods=["bico", "bico:alpha=4+head", "few-shot"], alpha="0.5,1,2")
    assert [str(spec) for spec in made.config.methods] == [
        "bico:alpha=0.5", "bico", "bico:alpha=2", "bico:alpha=4+head", "few-shot",
    ]  # fmt: skip
    assert [made.alpha(spec) for spec in made.config.methods] == [0.5, 1.0, 2.0, 4.0, 1.0]
    assert [made.strength(spec) for spec in made.config.methods] == [0.5, 1.0, 2.0, 1.0, 1.0]
    assert len({variant.method for spec, variant in made.methods.items() if spec.name == "bico"}) == 1
    assert (
        plan(folder, methods=["bico"], alpha=[2]).config.methods
        == plan(folder, methods=["bico:alpha=2"]).config.methods
    )
    for wrong in ("0.5,x", [None]):
        with pytest.raises(ValueError, match="is no number; write numbers with commas between"):
            plan(folder, alpha=wrong)
