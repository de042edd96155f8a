"""Pre-training in miniature: it learns, it repeats, and open_clip loads what it writes."""

import dataclasses
import math

import open_clip
import pytest
import torch
import yaml

from bico.errors import ConfigError
from zoo_build.captions_tokenizer import CONTEXT, train_tokenizer
from zoo_build.clip import (
    ClipPretraining,
    augment,
    build,
    contrastive_loss,
    learning_rate,
    save,
    train,
)
from zoo_build.pictures import STYLES, draw_pool

TINY = ClipPretraining(
    distribution="b", seed=5, steps=24, warm_up=4, batch_size=32, learning_rate=3e-3,
    width=64, layers=1, embed_dim=32, text_width=32, text_layers=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """Steps this small lose more to threads waiting for each other, on a busy machine by far, than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(pictures=2000)


@pytest.fixture
def pool(monkeypatch):
    style = STYLES["b"]
    fonts = tuple(font for font in style.fonts if font.startswith("matplotlib/"))
    monkeypatch.setitem(STYLES, "b", dataclasses.replace(style, fonts=fonts))
    return draw_pool("b", 128, 0, kind="shape")


def test_a_few_steps_lower_the_loss_and_repeat(tokenizer, pool):
    models = [build(TINY, len(tokenizer)) for _ in range(2)]
    losses = [train(model, tokenizer, pool, TINY, progress=False, bfloat16=False) for model in models]
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert sum(losses[0][-4:]) < sum(losses[0][:4]) - 1.0
    other = build(dataclasses.replace(TINY, seed=6), len(tokenizer))
    assert not torch.equal(other.visual.proj, build(TINY, len(tokenizer)).visual.proj)


def test_open_clip_loads_what_is_saved(tokenizer, tmp_path):
    model = build(TINY, len(tokenizer)).eval()
    save(model, tokenizer, TINY, tmp_path)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert preprocess.transforms[0].size == (TINY.image_size, TINY.image_size)
    images, texts = torch.rand(2, 3, 28, 28), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a", "the digit 7"])
    assert texts.shape == (2, CONTEXT)
    torch.testing.assert_close(loaded.eval().encode_image(images), model.encode_image(images), atol=2e-2, rtol=0)
    torch.testing.assert_close(loaded.encode_text(texts), model.encode_text(texts), atol=2e-2, rtol=0)


def test_the_loss_counts_one_meaning_as_one():
    features = torch.eye(3)
    alike = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    scale = torch.tensor(50.0)
    assert contrastive_loss(features, features, scale, torch.tensor([0, 1, 2])) < 1e-6
    # Two pictures of one meaning: even shares are the best answer, and cost exactly the entropy of a fair coin.
    assert contrastive_loss(alike, alike, scale, torch.tensor([0, 0, 1])).item() == pytest.approx(
        2 / 3 * math.log(2), abs=1e-5
    )
    assert contrastive_loss(alike, alike, scale, torch.tensor([0, 1, 2])) > 2 / 3 * math.log(2) - 1e-5


def test_the_learning_rate_rises_and_falls():
    rates = [learning_rate(step, TINY) for step in range(TINY.steps)]
    assert max(rates) == rates[TINY.warm_up] == rates[TINY.warm_up - 1] == TINY.learning_rate
    assert rates[0] == TINY.learning_rate / TINY.warm_up and rates[-1] < 0.02 * TINY.learning_rate
    assert rates[TINY.warm_up :] == sorted(rates[TINY.warm_up :], reverse=True)


def test_augmentation_keeps_what_is_in_the_picture():
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 12:20, 12:20] = 255
    seen = augment(images, 28, torch.Generator().manual_seed(0))
    assert seen.shape == (64, 3, 28, 28)
    assert (seen[:, :, 13:15, 13:15].mean((1, 2, 3)) > seen[:, :, :5, :5].mean((1, 2, 3)) + 1).all()
    assert not torch.equal(seen[0], seen[1])


def test_the_tokenizer_reads_any_ascii(tokenizer):
    ids = tokenizer(["speed limit 20km/h", "T-shirt/top", "".join(map(chr, range(32, 127)))]).input_ids
    assert tokenizer.convert_ids_to_tokens(ids[0]).count("Ġ2") == 1  # digits are tokens of their own
    for text, row in zip(["speed limit 20km/h", "T-shirt/top"], ids, strict=False):
        assert tokenizer.decode(row, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")
        assert row[-1] == tokenizer.eos_token_id == len(tokenizer) - 1 == max(row)
    long = tokenizer("word " * 90, truncation=True, max_length=CONTEXT).input_ids
    assert len(long) == CONTEXT and long[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"stepz": 3}, "did you mean 'steps'"), ({"distribution": None}, "distribution")],
)
def test_a_bad_recipe_is_refused(tmp_path, change, complaint):
    values = {"distribution": "a", "seed": 1} | change
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ConfigError, match=complaint):
        ClipPretraining.load(path)
