"""Pairs of texts without classes: their losses, what calibration makes of them, and how a model is measured by them."""

from pathlib import Path

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.signals import Signal, capture, signal_key
from bico.data.text import Pair
from bico.errors import ShapeError
from bico.evaluation.pairs import RECALL, SPEARMAN, measure_pairs, recall, spearman
from bico.finetune import FinetuneConfig, finetune
from bico.models.encoder.encoder import TextEncoder
from bico.models.encoder.pairs import TEMPERATURE, bank_loss, make_bank, ranking_loss, score_loss
from bico.models.encoder.recipe import Recipe
from bico.rehoming.in_memory import transfer
from bico.task_vector import subtract
from tests.tiny_encoder import WORDS, rotated_copy, texts, tiny_encoder

ALL = list(Signal)


def drawn_pairs(count: int, seed: int = 0) -> list[Pair]:
    return [Pair(*both) for both in zip(texts(count, seed), texts(count, seed + 500), strict=True)]


def features(count: int, seed: int, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, width, dtype=torch.float64, generator=generator)
    return first.requires_grad_(), second.requires_grad_()


def bank_of(model: TextEncoder, pairs: list[Pair], groups: Tensor) -> Tensor:
    return make_bank(*model.features(model.prepare(pairs)).chunk(2, dim=1), groups)


def gradients(loss: Tensor, of: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def test_ranking_is_cross_entropy_in_both_directions() -> None:
    first, second = (both.detach() for both in features(5, 1))
    cosines = torch.stack([F.cosine_similarity(text, second) for text in first])
    right = torch.arange(5)
    wanted = [F.cross_entropy(way / TEMPERATURE, right, reduction="sum") for way in (cosines, cosines.T)]
    assert_close(ranking_loss(first, second, right), (wanted[0] + wanted[1]) / 2)


def test_pairs_of_one_group_are_not_told_from_each_other() -> None:
    first, second = features(3, 1)
    groups, alone = torch.tensor([4, 7, 4]), ranking_loss(first[:2], second[:2], torch.tensor([0, 1]))
    # Without the third pair's own terms, the first two see each other and nothing else but what the second sees of the third.
    scores = (F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / TEMPERATURE).exp()
    rows = [(0, [0, 1]), (1, [0, 1, 2]), (2, [1, 2])]
    wanted = sum(
        (way[row, seen].sum().log() - way[row, row].log() for way in (scores, scores.T) for row, seen in rows),
        torch.zeros((), dtype=torch.float64),
    )
    assert_close(ranking_loss(first, second, groups), wanted / 2)
    assert ranking_loss(first, second, groups) > alone


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_bank_gives_the_gradients_of_one_batch_of_all_its_pairs(size: int) -> None:
    """Whatever the batch size; against autograd through the ranking loss, an implementation of its own."""
    (first, second), groups = features(8, 1), torch.arange(8) * 3
    bank = make_bank(first.detach(), second.detach(), groups)
    parts = torch.arange(8).split(size)
    banked = torch.stack([bank_loss(first[part], second[part], groups[part], bank) for part in parts])
    whole = ranking_loss(first, second, groups)
    for found, wanted in zip(gradients(banked.sum(), (first, second)), gradients(whole, (first, second)), strict=True):
        assert wanted.abs().max() > 0.1
        assert_close(found, wanted)
    assert_close(banked.sum() / 8, whole)


def test_a_pair_outside_of_the_bank_is_one_more() -> None:
    (first, second), groups = features(5, 2), torch.arange(5)
    bank = make_bank(first[:4].detach(), second[:4].detach(), groups[:4])
    assert_close(bank_loss(first[4:], second[4:], groups[4:], bank), ranking_loss(first, second, groups))


def test_a_bank_keeps_the_first_pair_of_each_group() -> None:
    first, second = features(4, 1)
    bank = make_bank(first.detach(), second.detach(), torch.tensor([0, 5, 0, 2]))
    assert bank[:, -1].tolist() == [0, 5, 2]
    assert_close(bank[:, :6], F.normalize(first[[0, 1, 3]].detach(), dim=1))
    assert_close(bank[:, 6:-1], F.normalize(second[[0, 1, 3]].detach(), dim=1))


def test_scores_are_what_cosines_should_be() -> None:
    first = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    second = torch.tensor([[0.0, 1.0], [3.0, 3.0]])
    assert_close(score_loss(first, second, torch.tensor([0.5, 0.9])), torch.tensor(0.25 + 0.01))


def test_pairs_are_two_texts_each_by_itself() -> None:
    model, pairs = tiny_encoder(1, dense=(torch.nn.Linear(12, 5, dtype=torch.float64),)), drawn_pairs(4)
    inputs = model.prepare(pairs)
    alone = [model.features(model.prepare([text])) for pair in pairs for text in (pair.first, pair.second)]
    assert_close(model.features(inputs), torch.cat(alone).view(4, 10))
    wider = model.stack([*inputs, inputs.new_zeros(2, inputs.size(2) + 7, 3)])[:-1]
    assert wider.shape == (4, 2, inputs.size(2) + 7, 3)
    assert_close(model.stack([model.prepare([pair])[0] for pair in pairs]), inputs)


@pytest.mark.parametrize("labels", [torch.arange(12), torch.linspace(-1, 1, 12)], ids=["groups", "scores"])
def test_batch_size_and_padding_change_nothing(labels: Tensor) -> None:
    source, target, pairs = tiny_encoder(1), tiny_encoder(2, "mpnet", width=16), drawn_pairs(12)
    heads = tuple(bank_of(model, pairs[:5], torch.arange(5)) for model in (source, target))

    def covariances(size: int, padding: int, heads: tuple) -> dict:
        def read(model: TextEncoder, part: slice) -> Tensor:
            inputs = model.prepare(pairs[part])
            empty = inputs.new_zeros(2, inputs.size(2) + padding, 3)
            empty[..., 2] = -1
            return model.stack([*inputs, empty])[:-1]

        batches = [Batch(read(source, p), read(target, p), labels[p]) for p in split_at(12, size, [12])]
        ((_, found),) = cross_covariances(source, target, batches, heads, ALL, [12])
        return found

    once, again = covariances(12, 0, heads), covariances(5, 3, heads)
    for key, wanted in once.items():
        assert wanted.any(), key
        assert_close(again[key], wanted)
    if not labels.is_floating_point():  # which the batch's own ranking does not hold: the reason for a bank
        key = next(key for key in once if key[1] is Signal.OUTPUT_GRAD)
        whole, halves = (covariances(size, 0, (None, None))[key] for size in (12, 6))
        assert (whole - halves).norm() > 0.01 * whole.norm()


def test_signals_make_the_parameters_gradients() -> None:
    model, pairs = tiny_encoder(1), drawn_pairs(6)
    inputs, groups, state = model.prepare(pairs), torch.arange(6), model.state()
    head = bank_of(model, pairs, groups)
    with model.instrument() as modules, capture(model.sites, modules, ALL) as seen:
        model.loss(inputs, groups, head).backward()
    leaves = [p.requires_grad_() for p in model.trainable()]
    loss = ranking_loss(*model.features(inputs).chunk(2, dim=1), groups)  # and not that of the bank
    grads = dict(zip(state, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True))
    for site in model.sites:
        x, g = seen[signal_key(site, Signal.INPUT)], seen[signal_key(site, Signal.OUTPUT_GRAD)]
        assert len(x) == len(g) == 12
        assert_close(torch.einsum("bto,bti->oi", g, x), site.weight.read(grads))


def planted(count: int, seed: int) -> list[Pair]:
    """Texts of other words that belong together by a rule that no tokenizer knows: the n-th word with the n-th from the end."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(len(WORDS), (count, 3), generator=generator).tolist()
    half = [[WORDS[n] for n in row] for row in numbers], [[WORDS[-1 - n] for n in row] for row in numbers]
    return [Pair(" ".join(first), " ".join(second)) for first, second in zip(*half, strict=True)]


def test_a_skill_of_pairs_is_carried_to_another_basis() -> None:
    source = tiny_encoder(1, width=16, hidden=32, recipe=Recipe(Path()))
    target, stream = rotated_copy(source, seed=7)
    train, test = planted(120, 1), planted(60, 2)
    inputs, groups = source.prepare(train), torch.arange(120)
    config = FinetuneConfig(steps=40, batch_size=32, lr=5e-3, warmup=5)
    tuned = finetune(source, lambda rows: (inputs[rows], groups[rows]), 120, None, config)
    sites = {slot.parameter for site in source.sites for slot in (site.weight, site.bias) if slot is not None}
    tau = {name: part.double() * (name in sites) for name, part in subtract(tuned, source.state()).items()}  # no norms

    def found(model: TextEncoder, vector: dict | None = None) -> float:
        with model.updated(vector or {}):
            return measure_pairs(model, [(model.prepare(test), torch.arange(60))]).all["recall@10"]

    before, expert = found(source), found(source, tau)
    assert expert > before + 40
    few = train[:90]
    heads = tuple(bank_of(model, few[:20], groups[:20]) for model in (source, target))
    parts = [few[p] for p in split_at(90, 16, [90])]
    numbers = [groups[p] for p in split_at(90, 16, [90])]
    batches = [Batch(source.prepare(p), target.prepare(p), n) for p, n in zip(parts, numbers, strict=True)]
    carried = transfer(tau, source, target, batches, heads)
    assert found(target) == before
    assert found(target, carried) == expert
    shown = source.prepare([pair.first for pair in test])
    with source.updated(tau), target.updated(carried):
        assert_close(target.features(shown), source.features(shown) @ stream, rtol=0, atol=1e-2)


def test_spearman_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    cosines, scores = torch.randn(40, generator=generator), torch.randint(6, (40,), generator=generator).float()
    assert spearman(cosines, scores) == pytest.approx(scipy.stats.spearmanr(cosines, scores).statistic)
    assert spearman(torch.zeros(4), scores[:4]) == 0  # a model that gives all texts one feature


def test_recall_counts_who_is_nearer_than_the_partner() -> None:
    first, second = torch.eye(3), torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.1, 0.6], [1.0, 0.0, 0.0]])
    groups = torch.arange(3)
    # Cosines by first text: 0.99 0.80 1.00; 0.11 0.10 0.00; 0.00 0.60 0.00.
    assert [recall(first, second, groups, k) for k in (1, 2, 3)] == pytest.approx([0, 2 / 3, 1])
    assert recall(first, second, torch.tensor([0, 1, 0]), 1) == pytest.approx(1 / 3)  # the third's is a partner, too
    assert recall(torch.ones(3, 2), torch.ones(3, 2), groups, 2) == 0  # one feature for all finds nothing


def test_a_model_is_measured_by_what_its_pairs_say() -> None:
    model, pairs = tiny_encoder(1), drawn_pairs(12)
    inputs, scores = model.prepare(pairs), torch.linspace(0, 1, 12)
    by_score = measure_pairs(model, [(inputs[p], scores[p]) for p in torch.arange(12).split(5)])
    cosines = F.cosine_similarity(*model.features(inputs).chunk(2, dim=1))
    assert by_score.name == SPEARMAN
    assert by_score.value == pytest.approx(100 * scipy.stats.spearmanr(cosines, scores).statistic)
    same = model.prepare([Pair(pair.first, pair.first) for pair in pairs])
    found = measure_pairs(model, [(same, torch.arange(12))])
    assert found.name == RECALL and found.all == {"recall@1": 100, "recall@10": 100}
    with pytest.raises(ShapeError, match="nothing to evaluate"):
        measure_pairs(model, [])
