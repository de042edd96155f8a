"""The language family: sites and signals, losses, padding, and that BiCo recovers a planted change of basis."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.memory import plan_memory
from bico.calibration.signals import Signal, capture, signal_key
from bico.errors import CheckpointError, MethodError, ShapeError
from bico.methods import Pair, get_method
from bico.models.t5.encoder import MAX_TOKENS, T5Encoder
from bico.rehoming.in_memory import transfer
from tests.tiny import tiny_clip
from tests.tiny_t5 import CLASS_NAMES, WORDS, random_task_vector, rotated_copy, texts, tiny_t5

FORMS = pytest.mark.parametrize("gated", [False, True], ids=["relu", "gated"])
LOSSES = pytest.mark.parametrize("loss", ["text", "probe"])
ALL = list(Signal)


def head_of(model: T5Encoder, loss: str = "text") -> Tensor:
    if loss == "text":
        return model.head(CLASS_NAMES)
    width = model.model.config.d_model
    return torch.randn(len(CLASS_NAMES), width + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def labels_of(count: int) -> Tensor:
    return torch.arange(count) % len(CLASS_NAMES)


def batches_of(model: T5Encoder, count: int, size: int = 16, other: T5Encoder | None = None) -> list[Batch]:
    drawn, labels = texts(count), labels_of(count)
    parts = [(drawn[s], labels[s]) for s in split_at(count, size, [count])]
    return [Batch(model.prepare(t), (other or model).prepare(t), y) for t, y in parts]


@FORMS
@LOSSES
def test_signals_make_the_parameters_gradients(gated: bool, loss: str) -> None:
    """Every site computes W x, and dL/dW = Σ g xᵀ against plain autograd: no site is dropped, doubled or transposed."""
    model = tiny_t5(1, gated=gated)
    inputs, labels, head, state = model.prepare(texts(8)), labels_of(8), head_of(model, loss), model.state()
    with model.instrument() as modules, capture(model.sites, modules, ALL) as seen:
        model.loss(inputs, labels, head).backward()
    leaves = [p.requires_grad_() for p in model.trainable()]
    grads = dict(zip(state, torch.autograd.grad(model.loss(inputs, labels, head), leaves), strict=True))
    roles = ["q", "k", "v", "o", *(("wi_0", "wi_1") if gated else ("wi",)), "wo"]
    assert [site.name for site in model.sites] == [f"blocks.{b}.{role}" for b in range(2) for role in roles]
    for site in model.sites:
        x, g = seen[signal_key(site, Signal.INPUT)], seen[signal_key(site, Signal.OUTPUT_GRAD)]
        weight = site.weight.read(state)
        assert weight.shape == site.shape
        assert_close(F.linear(x, weight), seen[signal_key(site, Signal.OUTPUT)])
        assert_close(torch.einsum("bto,bti->oi", g, x), site.weight.read(grads))


def test_sites_that_read_one_tensor_share_it() -> None:
    reads = {site.role: site.reads for site in tiny_t5(1, gated=True).sites if site.block == 0}
    assert reads["q"] == reads["k"] == reads["v"] and reads["wi_0"] == reads["wi_1"]
    assert len(set(reads.values())) == 4


def test_state_is_the_blocks_and_not_what_the_decoder_shares() -> None:
    names = set(tiny_t5(1).state())
    assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in names
    assert "encoder.final_layer_norm.weight" in names
    assert not any("embed" in name or "shared" in name or "decoder" in name for name in names)


def test_the_text_loss_is_transformers_own() -> None:
    model = tiny_t5(1)
    inputs, labels, head = model.prepare(texts(6)), labels_of(6), model.head(CLASS_NAMES)
    wanted = head[labels].masked_fill(head[labels] == model.pad, -100)
    mean = model.model(input_ids=inputs, attention_mask=model.mask(inputs).long(), labels=wanted).loss
    assert_close(model.loss(inputs, labels, head), mean * (wanted != -100).sum())


def test_scores_are_log_likelihoods_whose_labels_make_the_loss() -> None:
    model = tiny_t5(1)
    inputs, labels, head = model.prepare(texts(6)), labels_of(6), model.head(CLASS_NAMES)
    scores = model.logits(inputs, head)
    assert scores.shape == (6, 3) and (scores < 0).all()
    loss = model.loss(inputs, labels, head)
    assert_close(-scores[torch.arange(6), labels].sum(), loss)
    assert_close(model.loss(inputs, F.one_hot(labels, 3).double(), head), loss)


def test_probe_scores_and_loss() -> None:
    model = tiny_t5(1)
    inputs, labels, head = model.prepare(texts(6)), labels_of(6), head_of(model, "probe")
    scores = model.features(inputs) @ head[:, :-1].T + head[:, -1]
    assert_close(model.logits(inputs, head), scores)
    assert_close(model.loss(inputs, labels, head), F.cross_entropy(scores, labels, reduction="sum"))


@LOSSES
def test_padding_changes_nothing(loss: str) -> None:
    model, drawn, labels = tiny_t5(1), texts(7), labels_of(7)
    inputs, head = model.prepare(drawn), head_of(model, loss)
    wider = F.pad(inputs, (0, 5), value=model.pad)
    alone = torch.cat([model.features(model.prepare([text])) for text in drawn])
    assert_close(model.features(inputs), alone)
    assert_close(model.features(wider), alone)
    single = sum(model.loss(model.prepare([t]), y[None], head) for t, y in zip(drawn, labels, strict=True))
    assert_close(model.loss(wider, labels, head), single)
    assert_close(model.logits(wider, head), model.logits(inputs, head))


@LOSSES
@FORMS
def test_covariances_know_neither_padding_nor_batch_size(loss: str, gated: bool) -> None:
    ours, theirs = tiny_t5(1, gated=gated), tiny_t5(2, d_model=16, heads=1, d_ff=10, gated=gated)
    heads = head_of(ours, loss), head_of(theirs, loss)
    found = []
    for size, extra in ((1, 0), (5, 0), (12, 4)):
        batches = batches_of(ours, 12, size, theirs)
        batches = [Batch(F.pad(b.source, (0, extra)), F.pad(b.target, (0, extra)), b.labels) for b in batches]
        ((_, sums),) = cross_covariances(ours, theirs, batches, heads, ALL, [12])
        found.append(sums)
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for key, value in found[0].items():
            assert_close(other[key], value, rtol=1e-6, atol=1e-7)
    # Without padding every row is a token, so this is the plain product.
    rows = {}
    for model in (ours, theirs):
        for text in texts(12):
            with model.instrument() as modules, capture(model.sites, modules, [Signal.INPUT]) as seen:
                model.features(model.prepare([text]))
            rows.setdefault(model.name, []).append(seen["blocks.1.attn_in", Signal.INPUT][0])
    product = torch.cat(rows[ours.name]).T @ torch.cat(rows[theirs.name])
    assert_close(found[0]["blocks.1.attn_in", Signal.INPUT], product, rtol=1e-6, atol=1e-7)


@FORMS
@LOSSES
def test_a_planted_change_of_basis_is_recovered(gated: bool, loss: str) -> None:
    """The rotated copy computes the same function, and with the carried vector the function of the expert."""
    source = tiny_t5(1, gated=gated)
    target, fresh = rotated_copy(source, seed=7), source.prepare(texts(9, seed=99))
    text_head = source.head(CLASS_NAMES)
    plain = source.logits(fresh, text_head)
    assert_close(target.logits(fresh, text_head), plain, rtol=1e-5, atol=1e-5)
    assert (target.features(fresh) - source.features(fresh)).norm() > source.features(fresh).norm()

    probe = head_of(source, "probe")
    stream = torch.linalg.lstsq(source.model.shared.weight, target.model.shared.weight).solution
    turned = torch.cat([probe[:, :-1] @ stream, probe[:, -1:]], dim=1)
    heads = (text_head, text_head) if loss == "text" else (probe, turned)
    tau = random_task_vector(source, scale=0.5)
    carried = transfer(tau, source, target, batches_of(source, 100), heads, get_method("bico"))
    assert set(carried) == {site.weight.parameter for site in target.sites}
    with source.updated(tau):
        expert = source.logits(fresh, text_head)
        features = source.features(fresh)
    assert (features - source.features(fresh)).norm() > 0.05 * features.norm()  # the expert differs
    with target.updated(carried):
        assert_close(target.logits(fresh, text_head), expert, rtol=1e-4, atol=1e-4)
        assert_close(target.features(fresh), features @ stream, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["bico", "theseus", "bico:completion=svd"])
def test_each_side_of_each_site_has_its_own_direction(method: str) -> None:
    """T5-3B to T5-Large in small: one d_model, a narrower inner width, a narrower feed-forward, another depth."""
    source, target = tiny_t5(1, heads=4, d_ff=30, layers=2), tiny_t5(2, heads=2, d_ff=18, layers=3)
    heads = head_of(source), head_of(target)
    vector = transfer(
        random_task_vector(source), source, target, batches_of(source, 40, other=target), heads, get_method(method)
    )
    assert {name: t.shape for name, t in vector.items()} == {
        s.weight.parameter: torch.Size(s.shape) for s in target.sites
    }
    assert all(t.any() for t in vector.values())


def test_another_tokenizer_is_refused() -> None:
    source, target = tiny_t5(1), tiny_t5(2, words=[*WORDS[1:], WORDS[0]])
    with pytest.raises(MethodError, match="tiny-t5-1 and tiny-t5-2 have different tokenizers"):
        Pair.of(source, target)
    with pytest.raises(MethodError, match="tiny-t5-1 reads texts and tiny-2 pictures"):
        Pair.of(source, tiny_clip(2))


def test_gated_and_relu_do_not_match() -> None:
    with pytest.raises(MethodError, match=r"blocks\.0\.wi \(role wi\) has no counterpart"):
        transfer({}, tiny_t5(1, gated=True), tiny_t5(2), [], (head_of(tiny_t5(1)),) * 2, get_method("bico"))


def test_long_texts_are_cut_and_memory_is_planned_for_the_longest() -> None:
    model = tiny_t5(1)
    assert model.prepare([" ".join(["red"] * 999), "red"]).shape == (2, MAX_TOKENS)
    plan = plan_memory(model, model, [Signal.INPUT, Signal.OUTPUT_GRAD], batch_size=2)
    assert len(plan.passes) == 1
    per_block = 12 * 12 + 8 * 8 + 12 * 12 + 20 * 20 + 3 * 8 * 8 + 12 * 12 + 20 * 20 + 12 * 12
    assert plan.covariances == 2 * 4 * per_block


def test_inputs_and_classes_that_make_no_sense_are_refused() -> None:
    model = tiny_t5(1)
    with pytest.raises(ShapeError, match=r"takes token ids \(batch, tokens\), got torch.float64 of shape \(2, 3\)"):
        model.features(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="writes two of the classes strange, odd alike"):
        model.head(["strange", "odd"])


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_t5(1)
    model.model.shared.weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"odd: parameter shared\.weight holds NaN"):
        T5Encoder(model.model, model.tokenizer, "odd")
