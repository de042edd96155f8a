"""The text models of the zoo as shipped: whole, loadable by transformers alone, and better than before their training."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

from bico.models import zoo
from bico.models.loading import load, resolve
from zoo_build.builders import family
from zoo_build.measure_t5 import probes
from zoo_build.span_corruption import Corruption, corrupt, draw_spans
from zoo_build.t5 import T5Pretraining, build
from zoo_build.text_corpus import SENTINELS, VOCABULARY, sentinel_ids

MANIFEST = {name: entry for name, entry in zoo.read_manifest()["models"].items() if family(name) == "t5"}
every_model = pytest.mark.parametrize("name", sorted(MANIFEST))
PASSAGE = """
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so
well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or other
of their daughters.
"""


def recipe(name: str) -> T5Pretraining:
    return T5Pretraining.load(zoo.recipe(name))


def test_the_models_are_small_and_differ_in_every_direction():
    assert sum(path.stat().st_size for name in MANIFEST for path in (zoo.root() / name).iterdir()) < 30e6
    a, b = recipe("t5-mini-a"), recipe("t5-mini-b")
    assert a.width > b.width and a.feed_forward > b.feed_forward and a.heads * a.head_width != a.width
    assert a.seed != b.seed and a.books != b.books


@every_model
def test_entry_matches_files(name):
    entry, folder = MANIFEST[name], zoo.resolve(name)
    assert entry["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe(name))))
    assert entry["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    config = json.loads((folder / "config.json").read_text())
    assert (config["d_model"], config["num_layers"]) == (recipe(name).width, recipe(name).layers)


@every_model
def test_transformers_loads_it(name):
    folder = zoo.resolve(name)
    model, about = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) == MANIFEST[name]["parameters"]
    assert zoo.weights(folder).stat().st_size < 2 * MANIFEST[name]["parameters"] + 20_000  # float16, once each
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == VOCABULARY
    ids = tokenizer("Who wrote the <extra_id_0> ?").input_ids
    assert ids[-1] == model.config.eos_token_id == 1 and VOCABULARY - 1 in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "who wrote the ?"
    assert sentinel_ids(tokenizer).tolist() == list(range(VOCABULARY - 1, VOCABULARY - 1 - SENTINELS, -1))


def test_all_share_one_tokenizer():
    assert len({(zoo.root() / name / "tokenizer.json").read_bytes() for name in MANIFEST}) == 1


@every_model
def test_it_reads_english_better_than_before_its_training(name):
    model = load(resolve(f"zoo:{name}"))
    ids = model.tokenizer(PASSAGE, add_special_tokens=False, return_tensors="pt").input_ids[:, :48].repeat(20, 1)
    hidden = draw_spans(20, 48, Corruption(0.25, 2.0), torch.Generator().manual_seed(0))
    inputs, targets = corrupt(ids, hidden, sentinel_ids(model.tokenizer), 1)
    untrained = build(recipe(name)).eval()
    with torch.inference_mode():
        trained, before = (m(input_ids=inputs, labels=targets).loss.item() for m in (model.model, untrained))
    assert trained < before - 3


@every_model
def test_its_features_beat_what_an_untrained_model_gives(name):
    entry = MANIFEST[name]
    assert entry["held_out_loss"] < entry["untrained_loss"] - 3
    for task, margin in (("trec", 2), ("subj", 5)):
        found = entry["probe"][task]
        assert found["encoder"] > max(found["untrained_encoder"], found["untrained_embeddings"]) + margin


@every_model
def test_its_probe_is_what_the_manifest_says(name):
    folder = Path(os.environ.get("BICO_TEST_DATA", "no data")) / "trec"
    if not folder.is_dir():
        pytest.skip("BICO_TEST_DATA names no folder with the data set trec")
    found = MANIFEST[name]["probe"]["trec"]
    measured = probes(load(resolve(f"zoo:{name}")), folder)
    assert measured == pytest.approx((found["embeddings"], found["encoder"]), abs=1.0)
