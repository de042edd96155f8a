"""What a plan says of a pair of text encoders, before any work; and the head that an expert is tuned in."""

from pathlib import Path

import datasets
import pytest
import torch

import tasks.inputs
from bico.calibration.budget import Budget
from bico.calibration.shared_tokens import Between
from bico.calibration.signals import Signal
from bico.finetune import ENCODER
from bico.models.encoder.encoder import TextEncoder
from flows.config import TransferConfig
from flows.planning.plan import Plan, make_plan
from flows.records.written import alike, recorded
from flows.settings import Settings
from tasks.calibration import Calibration
from tasks.collect import Pass, _stream
from tasks.inputs import TaskRef, open_head, open_model, open_split, read_features
from tests.tiny_encoder import ROBERTA, bytes_tokenizer, texts, wordpiece, write_encoder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A task of text pairs."""
    features = datasets.Features(
        sentence1=datasets.Value("string"), sentence2=datasets.Value("string"),
        label=datasets.ClassLabel(names=["not_equivalent", "equivalent"]),
    )  # fmt: skip
    for split, seed, count in (("train", 1, 30), ("test", 3, 8)):
        columns = {"sentence1": texts(count, seed), "sentence2": texts(count, seed + 1), "label": [0, 1] * (count // 2)}
        (tmp_path / "mrpc").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "mrpc" / f"{split}.parquet")
    return tmp_path / "mrpc"


def plan_of(source: Path, target: Path, data: Path, home: Path, **more: object) -> Plan:
    asked = {"source": str(source), "target": str(target), "tasks": ["mrpc"], "data": [data], "out": home / "out"}
    return make_plan(TransferConfig(**asked, methods=["bico"], samples=[10], **more), Settings(home=home))


def test_two_tokenizers_are_recorded_with_what_they_share(pairs: Path, tmp_path: Path) -> None:
    source, target = write_encoder(tmp_path / "a", 1), write_encoder(tmp_path / "b", 2, "roberta", width=16)
    bytes_tokenizer().save_pretrained(target)
    plan = plan_of(source, target, pairs, tmp_path)
    part = plan.shared_tokens["mrpc"]
    assert 0 < part < 1
    assert recorded(plan)["shared_tokens.mrpc"] == part and alike(plan, "mrpc") == {"shared_tokens": part}
    assert plan.loss == "probe" and plan.probed and plan.finetuning == (ENCODER, ENCODER)
    assert [note.partition(" does not say how")[0] for note in plan.notes] == [str(source), str(target)]
    target = write_encoder(tmp_path / "c", 2, "roberta", width=16)
    wordpiece(ROBERTA).save_pretrained(target)
    assert (
        0.98 < plan_of(source, target, pairs, tmp_path).shared_tokens["mrpc"] < 1
    )  # its longest pairs are cut earlier
    plan = plan_of(source, write_encoder(tmp_path / "d", 2, "mpnet", width=16), pairs, tmp_path)
    assert plan.shared_tokens == {} and alike(plan, "mrpc") == {} and "shared_tokens.mrpc" not in recorded(plan)


def test_what_becomes_of_tokens_between_shared_ends_is_in_the_key_of_two_tokenizers_alone(
    pairs: Path, tmp_path: Path
) -> None:
    source, twin = write_encoder(tmp_path / "a", 1), write_encoder(tmp_path / "d", 2, "mpnet", width=16)
    target = write_encoder(tmp_path / "b", 2, "roberta", width=16)
    bytes_tokenizer().save_pretrained(target)

    def keys(other: Path) -> list[str]:
        found, sums = [], []
        for between in Between:
            plan = plan_of(source, other, pairs, tmp_path, between=between)
            drawn = Calibration(
                plan.source, plan.target, plan.tasks["mrpc"], (Budget(10, size=10),), 0, between=plan.between
            )
            found.append((one := Pass(drawn, (Signal.INPUT,), None)).key(Signal.INPUT))
            ((_, covariances),) = _stream(plan.space, one)
            sums.append(covariances["blocks.0.attn_in", Signal.INPUT])
        assert torch.equal(*sums) is (len(set(found)) == 1)  # the key tells what is another
        return found

    assert len(set(keys(target))) == 2 and len(set(keys(twin))) == 1
    assert recorded(plan_of(source, target, pairs, tmp_path, between="sum"))["between"] == "sum"
    assert "between" not in recorded(plan_of(source, twin, pairs, tmp_path, between="sum"))


def test_an_experts_head_is_fitted_to_as_many_texts_as_are_enough(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(write_encoder(tmp_path / "a", 1), write_encoder(tmp_path / "b", 2), pairs, tmp_path)
    task: TaskRef = plan.tasks["mrpc"]
    model, data = open_model(plan.source, "cpu"), open_split(plan.source, "cpu", task, "train")
    assert read_features(model, data, [0, 3])[0].shape == (2, 12)
    ids, kinds, _ = model.prepare([data.split.example(0)])[0].T
    assert (ids == 2).sum() == 2 and set(kinds.tolist()) == {0, 1}  # a pair, in the tokenizer's form
    head = open_head(plan.source, "cpu", task)
    monkeypatch.setattr(TextEncoder, "probe_samples", 10)
    tasks.inputs._open_head.cache_clear()
    fewer = open_head(plan.source, "cpu", task)
    assert head.shape == fewer.shape == (2, 13) and not torch.allclose(head, fewer)
