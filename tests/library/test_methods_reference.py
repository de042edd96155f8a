"""THESEUS, GradFix and TransFusion against `tests.reference`, which knows nothing of ours."""

import pytest
import torch
from torch.testing import assert_close

from bico.methods import Gathered, Pair, get_method
from bico.models.clip.vit import ClipViT
from tests import reference
from tests.library.test_methods import carried, labels_of, without_key_biases
from tests.symmetry import permuted_copy
from tests.tiny import head, pictures, random_task_vector, tiny_clip

DEPTH, HEADS = 2, 2


def test_the_reference_knows_how_a_vit_works(source: ClipViT) -> None:
    images = pictures(5)
    features = reference.forward(reference.split(source.state(), DEPTH), DEPTH, HEADS, images)
    assert_close(features, source.features(images))


def test_theseus(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    expected = reference.theseus(source.state(), target.state(), tau, DEPTH, HEADS, pictures(20))
    vector = carried(get_method("theseus"), source, target, tau, count=20)
    assert set(vector) == set(expected)
    for name, tensor in expected.items():
        assert_close(vector[name], tensor, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mask", ["normal", "force"])
@pytest.mark.parametrize("vote", ["majority", "mean"])
def test_gradfix(mask: str, vote: str, source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    tau["visual.proj"][0] = 0
    scale = float(target.model.logit_scale.exp())
    expected = reference.gradfix(
        target.state(), tau, DEPTH, HEADS, pictures(7), labels_of(7), head(target), scale, mask, vote
    )
    vector = carried(get_method(f"gradfix:mask={mask}:vote={vote}"), source, target, tau, count=7)
    assert set(vector) == set(expected)
    for name, tensor in without_key_biases(expected).items():
        assert torch.equal(without_key_biases(vector)[name], tensor), name


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("planted", [True, False])
def test_transfusion(planted: bool, seed: int) -> None:
    source = tiny_clip(seed, width=24)
    target = permuted_copy(source, 5, rotate_heads=False) if planted else tiny_clip(seed + 10, width=24)
    tau = random_task_vector(source)
    slow = reference.TransFusion(source.state(), target.state(), DEPTH, heads=3)
    expected = slow.transport(tau)
    vector = get_method("transfusion").transport(tau, Pair.of(source, target), Gathered())
    assert set(vector) == set(expected)
    assert all(torch.equal(vector[name], tensor) for name, tensor in expected.items())


def test_shortcuts_that_carry_a_permutation_keep_the_function() -> None:
    """Why every segment of the residual stream may have a permutation of its own in the matching: the source with its
    shortcuts permuted too is the same function. The task vector has nothing there, so nothing is lost without them.
    """
    source, target = tiny_clip(1, width=24), tiny_clip(2, width=24)
    slow = reference.TransFusion(source.state(), target.state(), DEPTH, heads=3)
    images = pictures(4)
    assert_close(reference.forward(slow.permuted(slow.a), DEPTH, 3, images), source.features(images))
    plain = slow.permuted(slow.a) | {name: t for name, t in slow.a.items() if "shortcut" in name}
    assert (reference.forward(plain, DEPTH, 3, images) - source.features(images)).norm() > 0.05
