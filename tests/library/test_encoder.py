"""Text encoders: sites and signals of every kind in the table, pooling, padding, and recovery of a planted change of basis."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.signals import Signal, capture, signal_key
from bico.data.text import Text
from bico.errors import CheckpointError, ConfigError, MethodError, ShapeError
from bico.methods import get_method
from bico.models.encoder.encoder import TextEncoder
from bico.models.encoder.layouts import LAYOUTS
from bico.models.encoder.recipe import MODES, Recipe
from bico.models.pooling import POOLINGS
from bico.rehoming.in_memory import transfer
from tests.tiny_encoder import KINDS, ROBERTA, random_task_vector, rotated_copy, texts, tiny_encoder, wordpiece

ALL, CLASSES = list(Signal), 3
KIND = pytest.mark.parametrize("kind", KINDS)


def head_of(model: TextEncoder, seed: int = 5) -> Tensor:
    width = model.model.config.hidden_size
    return torch.randn(CLASSES, width + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels_of(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def batches_of(model: TextEncoder, count: int, size: int = 16, other: TextEncoder | None = None) -> list[Batch]:
    drawn, labels = texts(count), labels_of(count)
    parts = [(drawn[s], labels[s]) for s in split_at(count, size, [count])]
    return [Batch(model.prepare(t), (other or model).prepare(t), y) for t, y in parts]


def padded(inputs: Tensor, extra: int, model: TextEncoder) -> Tensor:
    return model.stack([*inputs, inputs.new_zeros(inputs.size(1) + extra, 3)])[:-1]


@KIND
def test_signals_make_the_parameters_gradients(kind: str) -> None:
    """Every site computes W x + b; dL/dW = Σ g xᵀ and dL/db = Σ g against plain autograd: none is dropped or doubled."""
    model = tiny_encoder(1, kind)
    inputs, labels, head, state = model.prepare(texts(8)), labels_of(8), head_of(model), model.state()
    with model.instrument() as modules, capture(model.sites, modules, ALL) as seen:
        opened = model.loss(inputs, labels, head)
        opened.backward()
    leaves = [p.requires_grad_() for p in model.trainable()]
    plain = model.loss(inputs, labels, head)
    assert_close(opened, plain)
    grads = dict(zip(state, torch.autograd.grad(plain, leaves, allow_unused=True), strict=True))
    roles = ["q", "k", "v", "o", "wi", *(["gate"] if kind == "modernbert" else []), "wo"]
    assert [site.name for site in model.sites] == [f"blocks.{b}.{role}" for b in range(2) for role in roles]
    for site in model.sites:
        x, g = seen[signal_key(site, Signal.INPUT)], seen[signal_key(site, Signal.OUTPUT_GRAD)]
        weight = site.weight.read(state)
        assert weight.shape == site.shape
        assert (site.bias is None) == (kind == "modernbert")
        bias = None if site.bias is None else site.bias.read(state)
        assert_close(F.linear(x, weight, bias), seen[signal_key(site, Signal.OUTPUT)])
        if kind == "deberta-v2" and site.role in "qk":
            continue  # of relative positions too, which are no tokens
        assert_close(torch.einsum("bto,bti->oi", g, x), site.weight.read(grads))
        if site.bias is not None:
            assert_close(g.sum((0, 1)), site.bias.read(grads))


@KIND
def test_every_linear_map_of_the_blocks_is_a_site(kind: str) -> None:
    model = tiny_encoder(1, kind)
    blocks = model.model.get_submodule(LAYOUTS[kind].blocks)
    maps = {f"{LAYOUTS[kind].blocks}.{name}.weight" for name, m in blocks.named_modules() if isinstance(m, nn.Linear)}
    assert {site.weight.parameter for site in model.sites} == maps
    filled = {name: torch.zeros_like(p) for name, p in model.state().items()}
    for site in model.sites:
        site.weight.write(filled, site.weight.read(filled) + 1)
    assert all((filled[name] == 1).all() for name in maps)  # parts of a fused map make the whole, once


@KIND
def test_opening_a_model_leaves_it_as_it_was(kind: str) -> None:
    model = tiny_encoder(1, kind)
    before = dict(model.model.named_modules())
    with model.instrument():
        pass
    assert dict(model.model.named_modules()) == before


@KIND
def test_padding_changes_nothing(kind: str) -> None:
    model, drawn, labels = tiny_encoder(1, kind), texts(7), labels_of(7)
    inputs, head = model.prepare(drawn), head_of(model)
    alone = torch.cat([model.features(model.prepare([text])) for text in drawn])
    wider = padded(inputs, 5, model)
    assert wider.size(1) > inputs.size(1)
    assert_close(model.features(wider), alone, rtol=1e-6, atol=1e-6)
    single = sum(model.loss(model.prepare([t]), y[None], head) for t, y in zip(drawn, labels, strict=True))
    assert_close(model.loss(wider, labels, head), single, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["mpnet", "modernbert"])
def test_covariances_know_neither_padding_nor_batch_size(kind: str) -> None:
    ours, theirs = tiny_encoder(1, kind), tiny_encoder(2, kind, width=16, hidden=10)
    heads, found = (head_of(ours), head_of(theirs)), []
    for size, extra in ((1, 0), (5, 0), (12, 4)):
        batches = [
            Batch(padded(b.source, extra, ours), padded(b.target, extra, theirs), b.labels)
            for b in batches_of(ours, 12, size, theirs)
        ]
        ((_, sums),) = cross_covariances(ours, theirs, batches, heads, ALL, [12])
        found.append(sums)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in found[0].items():
            assert_close(other[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "distilbert", "modernbert"])
def test_a_planted_change_of_basis_is_recovered(kind: str) -> None:
    """The rotated copy computes the same function, and with the carried vector the function of the expert, biases and all."""
    source, fresh = tiny_encoder(1, kind), texts(9, seed=99)
    target, stream = rotated_copy(source, seed=7)
    inputs, probe = source.prepare(fresh), head_of(source)
    close = (
        {"rtol": 1e-3, "atol": 1e-3} if kind == "modernbert" else {"rtol": 1e-4, "atol": 1e-5}
    )  # it rounds to float32
    assert_close(target.features(inputs), source.features(inputs) @ stream, **close)
    turned = torch.cat([probe[:, :-1] @ stream, probe[:, -1:]], dim=1)
    tau = random_task_vector(source)
    carried = transfer(tau, source, target, batches_of(source, 90, other=target), (probe, turned), get_method("bico"))
    with source.updated(tau):
        expert = source.features(inputs)
    assert (expert - source.features(inputs)).norm() > 0.1 * expert.norm()
    with target.updated(carried):
        assert_close(target.features(inputs), expert @ stream, **close)


def test_every_pooling_is_what_its_name_says() -> None:
    assert tuple(POOLINGS) == MODES
    drawn = texts(5)
    for mode in MODES:
        model = tiny_encoder(1, recipe=Recipe(Path(), (mode,)))
        inputs = model.prepare(drawn)
        ids, mask = inputs[..., 0], model.mask(inputs)
        with torch.no_grad():
            hidden = model.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        for row, real, found in zip(hidden, mask, model.features(inputs), strict=True):
            tokens = row[real]
            places = torch.arange(1.0, len(tokens) + 1, dtype=torch.float64)[:, None]
            wanted = {
                "cls": tokens[0],
                "max": tokens.max(0).values,
                "mean": tokens.mean(0),
                "mean_sqrt_len_tokens": tokens.sum(0) / len(tokens) ** 0.5,
                "weightedmean": (places * tokens).sum(0) / places.sum(),
                "lasttoken": tokens[-1],
            }[mode]
            assert_close(found, wanted)


def test_several_poolings_stand_side_by_side_and_dense_modules_come_behind() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(24, 5), nn.Tanh()).double()
    parts = [tiny_encoder(1, recipe=Recipe(Path(), (mode,))) for mode in ("cls", "mean")]
    model = tiny_encoder(1, recipe=Recipe(Path(), ("cls", "mean")), dense=(dense,))
    inputs = model.prepare(texts(4))
    assert_close(model.features(inputs), dense(torch.cat([part.features(inputs) for part in parts], 1)))


def test_probe_scores_and_loss() -> None:
    model = tiny_encoder(1)
    inputs, labels, head = model.prepare(texts(6)), labels_of(6), head_of(model)
    scores = model.features(inputs) @ head[:, :-1].T + head[:, -1]
    assert_close(model.logits(inputs, head), scores)
    assert_close(model.loss(inputs, labels, head), F.cross_entropy(scores, labels, reduction="sum"))
    assert_close(model.loss(inputs, F.one_hot(labels, 3).double(), head), model.loss(inputs, labels, head))


def test_pairs_are_joined_in_the_tokenizers_own_form() -> None:
    bert, roberta = tiny_encoder(1), tiny_encoder(1, "mpnet", wordpiece(ROBERTA))
    example = Text("rte sentence1: bake sentence2: lili mo", ("bake", "lili mo"))
    ids, kinds, _ = bert.prepare([example])[0].T
    assert bert.tokenizer.convert_ids_to_tokens(ids.tolist()) == ["[CLS]", "bake", "[SEP]", "lili", "mo", "[SEP]"]
    assert kinds.tolist() == [0, 0, 0, 1, 1, 1]
    tokens = roberta.tokenizer.convert_ids_to_tokens(roberta.prepare([example])[0, :, 0].tolist())
    assert tokens == ["<s>", "bake", "</s>", "</s>", "lili", "mo", "</s>"]
    with torch.no_grad():
        one = bert.model(input_ids=ids[None], token_type_ids=kinds[None]).last_hidden_state.mean(1)
    assert_close(bert.features(bert.prepare([example])), one)


def test_long_texts_are_cut_at_what_the_folder_says_and_never_behind_the_last_position() -> None:
    long = " ".join(["bake"] * 99)
    assert tiny_encoder(1).prepare([long, "bake"]).shape == (2, 24, 3)  # the tokenizer's limit
    assert tiny_encoder(1, recipe=Recipe(Path(), longest=7)).prepare([long]).shape == (1, 7, 3)
    wide = wordpiece(ROBERTA)
    wide.model_max_length = 999
    model = tiny_encoder(1, "roberta", wide, Recipe(Path(), longest=999))
    assert model.tokens == 39  # of 40 positions, one is for padding
    assert model.features(model.prepare([long])).isfinite().all()


def test_a_prompt_is_put_before_every_text_and_may_be_left_out_of_the_mean() -> None:
    plain = tiny_encoder(1)
    whole = tiny_encoder(1, recipe=Recipe(Path(), prompt="mo ba "))
    assert_close(whole.features(whole.prepare(["bake"])), plain.features(plain.prepare(["mo ba bake"])))
    without = tiny_encoder(1, recipe=Recipe(Path(), prompt="mo ba ", pools_prompt=False))
    inputs = without.prepare(["bake"])
    with torch.no_grad():
        hidden = without.model(input_ids=inputs[..., 0]).last_hidden_state
    assert_close(without.features(inputs), hidden[:, 3:].mean(1))


def test_roles_that_the_source_lacks_are_refused() -> None:
    with pytest.raises(MethodError, match=r"blocks\.0\.gate \(role gate\) has no counterpart"):
        transfer({}, tiny_encoder(1), tiny_encoder(2, "modernbert"), [], (None, None), get_method("bico"))


def test_inputs_and_tokenizers_that_make_no_sense_are_refused() -> None:
    model = tiny_encoder(1)
    with pytest.raises(ShapeError, match=r"takes tokens \(batch, tokens, 3\), got torch.int64 of shape \(2, 3\)"):
        model.features(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no head that follows from class names"):
        model.head(["a", "b"])
    model.model.embeddings.word_embeddings.weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"odd: parameter embeddings\.word_embeddings\.weight holds NaN"):
        TextEncoder(model.model, model.tokenizer, model.recipe, name="odd")
    model = tiny_encoder(1)
    model.model.encoder.layer[1].attention.self.key = nn.Identity()
    with pytest.raises(CheckpointError, match=r"block 1 of its bert has no linear map attention\.self\.key"):
        TextEncoder(model.model, model.tokenizer, model.recipe, name="odd")
