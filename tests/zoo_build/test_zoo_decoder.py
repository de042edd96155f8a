"""The decoders of the zoo as shipped: whole, loadable by transformers alone, and better than before their training."""

import dataclasses
import json
import math

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from bico.models import zoo
from bico.models.loading import load, resolve
from zoo_build.builders import family
from zoo_build.decoder import DecoderPretraining, build
from zoo_build.measure_decoder import held_out

MANIFEST = {name: entry for name, entry in zoo.read_manifest()["models"].items() if family(name) == "decoder"}
every_model = pytest.mark.parametrize("name", sorted(MANIFEST))
PASSAGE = """
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so
well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or other
of their daughters.
"""


def recipe(name: str) -> DecoderPretraining:
    return DecoderPretraining.load(zoo.recipe(name))


def test_the_models_are_small_and_differ_where_adapters_must_be_carried() -> None:
    assert sum(path.stat().st_size for name in MANIFEST for path in (zoo.root() / name).iterdir()) < 30e6
    made = {name: recipe(name) for name in MANIFEST}
    a, b = made["llama-mini-a"], made["llama-mini-b"]
    assert a.width == b.width and a.key_heads != b.key_heads and a.books != b.books
    assert len({one.seed for one in made.values()}) == len(made)


@every_model
def test_entry_matches_files(name: str) -> None:
    entry, folder = MANIFEST[name], zoo.resolve(name)
    assert entry["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe(name))))
    assert entry["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_key_value_heads"]) == (recipe(name).width, recipe(name).key_heads)


@every_model
def test_transformers_loads_it(name: str) -> None:
    folder = zoo.resolve(name)
    model, about = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) == MANIFEST[name]["parameters"]
    assert zoo.weights(folder).stat().st_size < 2 * MANIFEST[name]["parameters"] + 20_000  # float16, once each
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size
    ids = tokenizer("Who wrote it?").input_ids
    assert ids[0] == model.config.bos_token_id and tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who wrote it?"}], tokenize=False
    )


def test_all_but_one_share_a_tokenizer() -> None:
    kinds = {(zoo.root() / name / "tokenizer.json").read_bytes(): recipe(name).tokenizer for name in MANIFEST}
    assert sorted(kinds.values()) == sorted({recipe(name).tokenizer for name in MANIFEST})


@every_model
def test_it_reads_english_better_than_before_its_training(name: str) -> None:
    model = load(resolve(f"zoo:{name}"))
    untrained = type(model)(build(recipe(name), len(model.tokenizer)), model.tokenizer)
    trained, before = (held_out(one, [PASSAGE])["loss"] for one in (model, untrained))
    assert trained < before - 2


@every_model
def test_it_knows_books_that_it_has_not_read_better_than_by_chance(name: str) -> None:
    entry = MANIFEST[name]
    assert entry["held_out"]["loss"] < min(entry["untrained"]["loss"], entry["of_chance"]) - 2
    assert entry["held_out"]["perplexity"] == pytest.approx(math.exp(entry["held_out"]["loss"]), rel=1e-3)
