"""An expert's own classification head as the loss of a text encoder."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from bico.calibration.covariances import Batch
from bico.errors import CheckpointError
from bico.models.encoder.classifier import ClassifiedEncoder, with_head_of
from bico.models.encoder.encoder import TextEncoder
from bico.rehoming.in_memory import transfer
from tests.tiny_encoder import KINDS, config_of, random_task_vector, texts, tiny_encoder, write_encoder

ANY = torch.arange(3)  # the classes, in the order of the scores


def classifier_of(kind: str, seed: int = 1, **shape: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = config_of(kind, **shape)
    config.num_labels = 3
    return AutoModelForSequenceClassification.from_config(config).eval()


def called(whole: torch.nn.Module, model: TextEncoder, inputs: Tensor) -> Tensor:
    return whole(**model.model_inputs(inputs)).logits


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_transformers_own_and_follow_the_encoders_weights(kind: str, tmp_path: Path) -> None:
    whole = classifier_of(kind)
    whole.save_pretrained(tmp_path)
    model = tiny_encoder(2, kind, dtype=torch.float32)
    classified, inputs = with_head_of(model, tmp_path), model.prepare(texts(5))
    base = getattr(whole, whole.base_model_prefix)
    assert not torch.allclose(classified.logits(inputs, None), called(whole, model, inputs))
    tau = {name: tensor - model.state()[name] for name, tensor in base.named_parameters() if name in model.state()}
    rest = {name: t for name, t in base.state_dict().items() if not name.startswith((*model.prefixes, "pooler"))}
    model.model.load_state_dict(rest, strict=False)
    pooler = getattr(model.model, "pooler", None)
    with classified.updated({name: t.detach() for name, t in tau.items()}):
        assert_close(classified.logits(inputs, None), called(whole, model, inputs), rtol=1e-4, atol=1e-5)
    assert getattr(model.model, "pooler", None) is pooler
    labels = torch.arange(5) % 3
    assert_close(
        classified.loss(inputs, labels, ANY), F.cross_entropy(classified.logits(inputs), labels, reduction="sum")
    )


def test_a_transfer_takes_the_head_of_the_expert_on_one_side_and_a_probe_on_the_other() -> None:
    source, target = tiny_encoder(1), tiny_encoder(2, "mpnet", width=16)
    classified = ClassifiedEncoder(source, classifier_of("bert").double())
    drawn, labels = texts(30), torch.arange(30) % 3
    batch = Batch(source.prepare(drawn), target.prepare(drawn), labels)
    probe = torch.randn(3, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tau = random_task_vector(source)
    found = transfer(tau, classified, target, [batch], (ANY, probe))
    other = transfer(tau, ClassifiedEncoder(source, classifier_of("bert", 9).double()), target, [batch], (ANY, probe))
    assert all(t.any() for t in found.values())
    assert any(not torch.allclose(found[name], other[name]) for name in found)  # the head matters


def test_heads_of_other_models_are_refused(tmp_path: Path) -> None:
    model = tiny_encoder(1, dtype=torch.float32)
    classifier_of("bert", layers=3).save_pretrained(tmp_path / "deep")
    with pytest.raises(CheckpointError, match="head is of a BertForSequenceClassification of another shape"):
        with_head_of(model, tmp_path / "deep")
    write_encoder(tmp_path / "bare", 1)
    with pytest.raises(CheckpointError, match="has no trained classification head: its weights lack classifier"):
        with_head_of(model, tmp_path / "bare")
    with pytest.raises(CheckpointError, match="cannot read the head of"):
        with_head_of(model, tmp_path / "nothing")
