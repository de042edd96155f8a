"""Pre-training of text models in miniature: it learns, it repeats, and transformers loads what it writes."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer, T5ForConditionalGeneration

from bico.errors import ConfigError, DataError
from bico.models.loading import load, resolve
from bico.models.t5.encoder import T5Encoder
from bico.models.zoo import read_manifest
from bico.models.zoo import resolve as resolve_zoo
from flows.pretrain import pretrain
from zoo_build.builders import summary
from zoo_build.measure_t5 import entry, held_out_loss, probes, read_texts, sentence_features
from zoo_build.t5 import T5Pretraining, build, learning_rate, run, save, start_embedding, train
from zoo_build.text_corpus import (
    SENTINELS,
    Passage,
    batches,
    choose_books,
    encode,
    find_corpus,
    read_passages,
    sentinel_ids,
    train_tokenizer,
    windows,
)

TINY = T5Pretraining(
    corpus="tales", seed=5, steps=30, warm_up=3, batch_size=8, length=24, density=0.25, span=2.0,
    width=32, head_width=8, heads=3, feed_forward=48, layers=1, decoder_layers=1,
)  # fmt: skip
WHO, DID, WHAT = ("the fox", "a crow", "our king"), ("took", "hid", "lost"), ("the cheese", "a ring", "his crown")


def tales(first: int, last: int) -> list[Passage]:
    """Text that repeats itself: every fact has a number, which chooses its three parts."""
    facts = [f"{WHO[i % 3]} {DID[i // 3 % 3]} {WHAT[i // 9 % 3]}." for i in range(27)]
    return [Passage(" ".join(facts[(7 * n + i) % 27] for i in range(12)), f"book {n % 5}") for n in range(first, last)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tales"
    folder.mkdir()
    for split, passages in (("train", tales(0, 40)), ("test", tales(40, 80))):
        rows = {"text": [p.text for p in passages], "title": [p.book for p in passages]}
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return train_tokenizer([passage.text for passage in read_passages(folder, "train")], vocabulary=120)


def test_a_few_steps_lower_the_loss_and_repeat(folder, tokenizer):
    passages, sentinels = encode(tokenizer, read_passages(folder, "train")), sentinel_ids(tokenizer)
    models = [build(TINY, len(tokenizer)) for _ in range(2)]
    losses = [train(model, passages, sentinels, TINY, progress=False, bfloat16=False) for model in models]
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert sum(losses[0][-4:]) < sum(losses[0][:4]) - 4.0
    other = build(dataclasses.replace(TINY, seed=6), len(tokenizer))
    assert not torch.equal(other.shared.weight, build(TINY, len(tokenizer)).shared.weight)
    held_out = encode(tokenizer, read_passages(folder, "test"))
    assert (
        held_out_loss(models[0], held_out, sentinels, TINY, 2) < held_out_loss(other, held_out, sentinels, TINY, 2) - 1
    )


def test_a_recipe_and_a_corpus_make_a_model_that_transformers_loads(folder, tmp_path):
    record = run(dataclasses.replace(TINY, steps=3), tmp_path / "m", [folder], progress=False)
    about = entry(dataclasses.replace(TINY, steps=3), tmp_path / "m", record, [folder])
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "m", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert about["parameters"] == sum(p.numel() for p in model.parameters())
    assert model.lm_head.weight is model.shared.weight
    batch = tokenizer(["the fox hid a ring.", "our king lost"], padding=True, return_tensors="pt")
    assert model.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0].shape[-1] == TINY.width
    assert about["held_out_loss"] == pytest.approx(about["untrained_loss"], abs=3) and about["probe"] == {}
    assert {path.name for path in (tmp_path / "m").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_step_is_as_long_as_the_schedule_says(folder, tokenizer):
    passages, sentinels = encode(tokenizer, read_passages(folder, "train")), sentinel_ids(tokenizer)
    model = build(TINY, len(tokenizer))
    before = model.shared.weight.detach().clone()
    train(model, passages, sentinels, dataclasses.replace(TINY, steps=1, warm_up=4), progress=False, bfloat16=False)
    moved = (model.shared.weight.detach() - before).abs().max().item()
    assert moved == pytest.approx(TINY.embedding_rate / 4, rel=1e-3)  # AdamW's first step is the rate in every element


def test_training_starts_from_word_vectors_of_its_own_books(folder, tmp_path):
    recipe = dataclasses.replace(TINY, steps=1, embedding_rate=0.0, books=(0.0, 0.6))
    run(recipe, tmp_path, [folder], progress=False)
    loaded, passages = load(resolve(str(tmp_path))), read_passages(folder, "train")
    model = build(recipe, len(loaded.tokenizer))
    start_embedding(model, encode(loaded.tokenizer, choose_books(passages, 0.0, 0.6)), recipe)
    torch.testing.assert_close(loaded.model.shared.weight, model.shared.weight, atol=1e-2, rtol=0)
    start_embedding(model, encode(loaded.tokenizer, passages), recipe)
    assert (loaded.model.shared.weight - model.shared.weight).abs().max() > 0.1


def test_the_flow_builds_measures_and_registers(api, folder, questions, tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(dataclasses.asdict(TINY) | {"steps": 2, "books": [0.0, 0.8]}))
    monkeypatch.setattr("bico.models.zoo.recipe", lambda name: tmp_path / f"{name}.yaml")
    pretrain("tiny", tmp_path / "zoo" / "tiny", [folder, questions])
    entry = read_manifest(tmp_path / "zoo")["models"]["tiny"]
    assert entry["recipe"]["books"] == [0.0, 0.8] and entry["parameters"] > entry["encoder_parameters"]
    assert entry["probe"][questions.name]["embeddings"] == 100  # the first word of a question is its answer
    assert resolve_zoo("tiny", tmp_path / "zoo") == tmp_path / "zoo" / "tiny"
    assert summary("tiny", entry).startswith("zoo:tiny ")
    shorter = pretrain("tiny", tmp_path / "zoo" / "tiny-1", [folder], steps=1)
    assert (entry["recipe"]["steps"], shorter["recipe"]["steps"]) == (2, 1)
    assert shorter["sha256"] != entry["sha256"]


def test_what_is_saved_computes_the_same(tokenizer, tmp_path):
    model = build(dataclasses.replace(TINY, gated=True), len(tokenizer)).eval()
    save(model, tokenizer, TINY, tmp_path)
    loaded = load(resolve(str(tmp_path))).model
    ids = torch.tensor([[5, 6, 7, 1]])
    torch.testing.assert_close(loaded.encoder(ids)[0], model.encoder(ids)[0], atol=1e-2, rtol=0)
    torch.testing.assert_close(loaded(ids, labels=ids).logits, model(ids, labels=ids).logits, atol=1e-2, rtol=0)


def test_the_tokenizer_puts_special_tokens_where_t5_has_them(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    last = len(tokenizer) - 1
    assert sentinel_ids(tokenizer).tolist() == list(range(last, last - SENTINELS, -1))
    assert tokenizer("the fox <extra_id_0> a ring").input_ids.count(last) == 1
    ids = tokenizer(["The Fox hid a ring .", "the fox hid a ring."]).input_ids
    assert ids[0] == ids[1] and ids[0][-1] == 1
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "the fox hid a ring ."


def test_the_tokenizer_repeats(folder, tokenizer):
    again = train_tokenizer([passage.text for passage in read_passages(folder, "train")], vocabulary=120)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_letters_outside_the_alphabet_are_unknown():
    foreign = train_tokenizer(["жук the fox"] * 5, vocabulary=110)
    assert foreign("жук fox").input_ids.count(foreign.unk_token_id) == 1


def test_windows_hold_every_token_once_without_padding():
    passages = [torch.arange(10 * i, 10 * i + 7) for i in range(10)]
    cut = windows(passages, 5, torch.Generator().manual_seed(0))
    assert cut.shape == (14, 5) and sorted(cut.flatten().tolist()) == sorted(torch.cat(passages).tolist())
    with pytest.raises(DataError, match="70 tokens, and one window needs 71"):
        windows(passages, 71, torch.Generator())


def test_the_order_of_the_text_is_the_seed_s():
    passages = [torch.arange(10 * i, 10 * i + 7) for i in range(10)]

    def drawn(seed: int) -> list:
        stream = batches(passages, 5, 4, torch.Generator().manual_seed(seed))
        return [next(stream).tolist() for _ in range(6)]

    assert drawn(1) == drawn(1) != drawn(2)
    with pytest.raises(DataError, match="14 windows of 5 tokens, and one batch needs 15"):
        next(batches(passages, 5, 15, torch.Generator()))
    assert drawn(1)[:3] != drawn(1)[3:]  # three batches are one round; the next has another order


def test_shares_of_the_books_do_not_overlap():
    passages = tales(0, 40)
    first, rest = choose_books(passages, 0, 0.4), choose_books(passages, 0.4, 1)
    assert {p.book for p in first} | {p.book for p in rest} == {p.book for p in passages}
    assert len({p.book for p in first}) == 2 and not {p.book for p in first} & {p.book for p in rest}
    assert choose_books(passages, 0, 1) == passages


def test_the_learning_rate_rises_and_falls_to_zero():
    shares = [learning_rate(step, TINY) for step in range(TINY.steps)]
    assert shares[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1]) and learning_rate(TINY.steps, TINY) == 0
    assert shares[3:] == sorted(shares[3:], reverse=True)


@pytest.fixture
def questions(tmp_path):
    """A task that the first word decides."""
    for split, count in (("train", 60), ("test", 30)):
        rows = {"text": [f"{WHO[i % 3]} {DID[i % 2]} it" for i in range(count)], "label": [i % 3 for i in range(count)]}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    return tmp_path


def test_features_are_means_over_real_tokens(tokenizer):
    model = T5Encoder(build(TINY, len(tokenizer)), tokenizer)
    texts = ["the fox", "our king lost his crown. a ring"]
    bags, states = sentence_features(model, texts)
    for text, bag, state in zip(texts, bags, states, strict=True):
        ids = torch.tensor([tokenizer(text).input_ids])
        torch.testing.assert_close(bag, model.model.shared(ids)[0].mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(state, model.model.encoder(ids)[0][0].mean(0), atol=1e-4, rtol=1e-4)


def test_probes_tell_what_the_features_hold(tokenizer, questions):
    model = T5Encoder(build(TINY, len(tokenizer)), tokenizer)
    bag, states = probes(model, questions)
    assert bag == 100 and states > 90
    with torch.no_grad():
        model.model.shared.weight.zero_()
    assert probes(model, questions)[0] < 40  # all words alike: nothing to read
    pq.write_table(pa.table({"text": ["a"]}), questions / "test.parquet")
    with pytest.raises(DataError, match="columns `text` and `label`, this file has text"):
        read_texts(questions, "test")


def test_a_missing_corpus_is_named(folder, tmp_path):
    assert find_corpus("tales", [tmp_path, folder]) == folder
    with pytest.raises(DataError, match=r"add --data PATH/tales"):
        find_corpus("tales", [tmp_path])
    with pytest.raises(DataError, match=r"no train\.parquet"):
        read_passages(tmp_path, "train")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="columns `text` and `title`, this file has text"):
        read_passages(tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "complaint"), [({"stepz": 3}, "did you mean 'steps'"), ({"corpus": None}, "corpus")]
)
def test_a_bad_recipe_is_refused(tmp_path, change, complaint):
    values = {"family": "t5", "corpus": "tales", "seed": 1} | change
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ConfigError, match=complaint):
        T5Pretraining.load(path)
