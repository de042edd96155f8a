"""Encoders with a linear classifier, written so that transformers' own classes load them with it."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from bico.errors import CheckpointError, ConfigError
from bico.evaluation.classifier import load_classifier
from bico.evaluation.head_files import save_head
from bico.evaluation.linear_head import LinearHead
from bico.models.encoder import sequence_head
from bico.models.encoder.encoder import TextEncoder
from bico.models.encoder.family import ENCODER
from bico.models.files import ModelFiles
from bico.models.loading import load, resolve
from tests.tiny_encoder import KINDS, random_task_vector, texts, write_encoder

CLASSES = ("left", "right", "none of both")


def opened(folder: Path, kind: str, pooling: str, **shape: int) -> tuple[TextEncoder, ModelFiles]:
    files = ENCODER.with_pooling(resolve(str(write_encoder(folder, 1, kind, **shape))), pooling)
    return load(files), files


def classifier(count: int = 3, width: int = 12) -> LinearHead:
    generator = torch.Generator().manual_seed(4)
    return LinearHead(torch.randn(width, count, generator=generator), torch.randn(count, generator=generator))


@pytest.mark.parametrize(("kind", "pooling"), [*((kind, "cls") for kind in KINDS), ("modernbert", "mean")])
def test_transformers_gives_the_scores_of_the_linear_classifier(kind: str, pooling: str, tmp_path: Path) -> None:
    (model, files), out = opened(tmp_path / "in", kind, pooling), tmp_path / "out"
    out.mkdir()
    drawn, tau = texts(6), random_task_vector(model)
    with model.updated(tau):
        inputs, scores = model.prepare(drawn), classifier().scores(model.features(model.prepare(drawn)))
        ENCODER.save(model, files, out)
        name = ENCODER.save_classifier(model, files, out, classifier(), CLASSES)
    save_head(out, classifier(), CLASSES)
    theirs = AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert type(theirs).__name__ == name and tuple(theirs.config.id2label.values()) == CLASSES
    assert_close(theirs(**model.model_inputs(inputs)).logits, scores, rtol=1e-3, atol=1e-3)
    assert_close(load_classifier(out).scores(drawn), scores, rtol=1e-4, atol=1e-4)  # the folder says how it pools


def test_what_no_head_of_transformers_says_is_not_written(tmp_path: Path) -> None:
    for kind, pooling, count in (
        ("bert", "mean", 3),
        ("bert", "cls", 13),
        ("electra", "cls", 7),
        ("modernbert", "cls", 6),
    ):
        model, files = opened(tmp_path / f"{kind}{pooling}{count}", kind, pooling)
        names = [f"c{n}" for n in range(count)]
        assert ENCODER.save_classifier(model, files, tmp_path, classifier(count), names) == ""
    assert not (tmp_path / "model.safetensors").exists()


def test_a_head_that_does_not_agree_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, files = opened(tmp_path / "in", "bert", "cls")
    (tmp_path / "out").mkdir()
    ENCODER.save(model, files, tmp_path / "out")
    monkeypatch.setattr(sequence_head, "_STRAIGHT", 1.0)  # tanh bends scores of this size
    assert ENCODER.save_classifier(model, files, tmp_path / "out", classifier(), CLASSES) == ""


def test_pooling_is_asked_of_folders_that_do_not_say(tmp_path: Path) -> None:
    plain = resolve(str(write_encoder(tmp_path / "a", 1)))
    assert ENCODER.with_pooling(plain, "mean") == plain  # what is taken anyway
    asked = ENCODER.with_pooling(plain, "cls")
    assert asked.digest() != plain.digest() and load(asked).recipe.pooling == ("cls",)
    (tmp_path / "b").mkdir()
    ENCODER.save(load(asked), asked, tmp_path / "b")
    said = resolve(str(tmp_path / "b"))
    assert (
        load(said).recipe.pooling == ("cls",) and load(said).notes == () and ENCODER.with_pooling(said, "max") == said
    )
    with pytest.raises(ConfigError, match="--pooling first: there is no such pooling"):
        ENCODER.with_pooling(plain, "first")


def test_a_folder_without_a_classification_head_is_refused(tmp_path: Path) -> None:
    plain = resolve(str(write_encoder(tmp_path / "a", 1)))
    with pytest.raises(CheckpointError, match="is a BertModel, which has no classification head"):
        ENCODER.with_classifier(plain, tmp_path / "a")
    with pytest.raises(CheckpointError, match="holds no model of transformers"):
        ENCODER.with_classifier(plain, tmp_path)
