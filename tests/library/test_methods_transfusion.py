"""TransFusion finds a planted permutation, exactly."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bico.errors import MethodError
from bico.methods import Gathered, Pair, get_method
from bico.methods.transfusion import match
from bico.models.clip.vit import ClipViT
from bico.models.permutations import SlotAxis, axes_of, permute_state
from bico.models.sites import Slot
from tests.symmetry import permuted_copy
from tests.tiny import pictures, random_task_vector, tiny_clip, tokenizer


@pytest.fixture
def large() -> ClipViT:
    return tiny_clip(1, width=32, layers=3)


@pytest.fixture
def twin(large: ClipViT) -> ClipViT:
    return permuted_copy(large, seed=5, rotate_heads=False)


def test_a_planted_permutation_is_found_exactly(large: ClipViT, twin: ClipViT) -> None:
    """Stream, hidden units, heads and features in heads: the permuted source is the target, entry by entry."""
    found = match(large.state(), twin.state(), large.permutations)
    moved = permute_state(large.state(), large.permutations, found)
    assert all(torch.equal(moved[name], tensor) for name, tensor in twin.state().items())
    assert not torch.equal(moved["visual.conv1.weight"], large.state()["visual.conv1.weight"])
    assert all(not torch.equal(order, torch.arange(len(order))) for order in found.values())


def test_the_transported_expert_is_the_expert(large: ClipViT, twin: ClipViT) -> None:
    tau, images = random_task_vector(large), pictures(6)
    assert_close(twin.features(images), large.features(images))
    vector = get_method("transfusion").transport(tau, Pair.of(large, twin), Gathered())
    with large.updated(tau):
        expert = large.features(images)
    with twin.updated(vector):
        assert_close(twin.features(images), expert)
    with twin.updated(get_method("naive").transport(tau, Pair.of(large, twin), Gathered())):
        assert (twin.features(images) - expert).norm() > 0.1 * expert.norm()


def test_a_tower_without_a_first_norm_is_matched_all_the_same() -> None:
    model = tiny_clip(1, width=32, layers=3).model
    model.visual.ln_pre = nn.Identity()
    bare = ClipViT(model, None, tokenizer, "bare")
    twin, tau = permuted_copy(bare, seed=5, rotate_heads=False), random_task_vector(bare)
    vector = get_method("transfusion").transport(tau, Pair.of(bare, twin), Gathered())
    images = pictures(6)
    with bare.updated(tau), twin.updated(vector):
        assert_close(twin.features(images), bare.features(images))


def test_without_intra_head_matching_features_inside_heads_stay_unmatched(large: ClipViT, twin: ClipViT) -> None:
    found = match(large.state(), twin.state(), large.permutations, intra_head=False)
    moved = permute_state(large.state(), large.permutations, found)
    heads, size = 4, 8
    for group in large.permutations:
        if group.heads:
            places = found[group.name].view(heads, size)
            assert torch.equal(places % size, torch.arange(size).expand(heads, size))  # whole heads
    assert not torch.equal(moved["visual.transformer.resblocks.0.attn.in_proj_weight"],
                           twin.state()["visual.transformer.resblocks.0.attn.in_proj_weight"])  # fmt: skip


def test_heads_are_told_apart_whatever_their_inner_basis(large: ClipViT) -> None:
    """Singular values do not feel rotations inside heads, in which q, k, v and out_proj differ here."""
    rotated = permuted_copy(large, seed=5)  # heads rotated, but in their places
    found = match(large.state(), rotated.state(), large.permutations, intra_head=False)
    for group in large.permutations:
        if group.heads:
            assert torch.equal(found[group.name], torch.arange(group.size))


def test_the_result_does_not_depend_on_chance(source: ClipViT, target: ClipViT) -> None:
    one, two, other = (match(source.state(), target.state(), source.permutations, seed=seed) for seed in (89, 89, 5))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)  # another order, another local optimum


def test_matching_brings_the_weights_closer(source: ClipViT, target: ClipViT) -> None:
    found = match(source.state(), target.state(), source.permutations)
    assert all(torch.equal(order.sort().values, torch.arange(len(order))) for order in found.values())
    moved = permute_state(source.state(), source.permutations, found)

    def overlap(state: dict) -> float:
        return sum(float((state[name] * tensor).sum()) for name, tensor in target.state().items())

    assert overlap(moved) > overlap(source.state())


def test_the_table_covers_every_parameter_and_no_axis_twice(source: ClipViT) -> None:
    """Every axis of every parameter but those that are no features of the tower: pixels, positions, embedding."""
    axes = axes_of(source.permutations)
    assert {slot.parameter for slot in axes} == set(source.state())
    places = [place for group in source.permutations for place in group.places]
    assert len(places) == len(set(places))
    free = {"visual.conv1.weight": {1, 2, 3}, "visual.positional_embedding": {0}, "visual.proj": {1}}
    for slot, used in axes.items():
        tensor = slot.read(source.state())
        assert set(range(tensor.ndim)) - set(used) == free.get(slot.parameter, set()), slot
        for group in source.permutations:
            for place in group.places:
                if place.slot == slot:
                    assert tensor.shape[place.axis] == group.size
    assert SlotAxis(Slot("visual.transformer.resblocks.0.attn.in_proj_weight", 16, 32), 0) in places
    assert len([g for g in source.permutations if not g.heads and not g.name.endswith("hidden")]) == 2 * 2 + 1


def test_other_heads_and_other_families_are_refused(source: ClipViT, target: ClipViT) -> None:
    method = get_method("transfusion")
    pair = Pair.of(source, target)
    other = tiny_clip(2)
    for block in other.model.visual.transformer.resblocks:
        block.attn.num_heads = 1
    other = ClipViT(other.model, None, other.tokenizer)
    with pytest.raises(MethodError, match="numbers of attention heads differ: use an aligned method"):
        method.check(Pair.of(source, other))
    states = pair.source_sites, pair.target_sites, pair.source_state, pair.target_state
    with pytest.raises(MethodError, match="no permutation group for visual.class_embedding"):
        method.check(Pair(*states))


def test_a_table_that_names_what_the_model_lacks_is_refused_before_any_work(source: ClipViT, target: ClipViT) -> None:
    def without(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if name != "visual.ln_pre.bias"}

    pair = Pair.of(source, target)
    pair = replace(pair, source_state=without(pair.source_state), target_state=without(pair.target_state))
    with pytest.raises(MethodError, match="has a permutation group for visual.ln_pre.bias, which the model lacks"):
        get_method("transfusion").check(pair)
