"""Effect matching: a carried update moves the target's outputs by the share it moved the source's, whatever the scales."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import collect_signals
from bico.calibration.scales import Scale, signal_scales
from bico.calibration.signals import Signal
from bico.linalg.procrustes import Completion
from bico.methods import METHODS, Pair
from bico.methods.strength import Sizes, Strength, effect_strengths
from bico.models.clip.vit import ClipViT
from tests.tiny import CLASSES, evidence_for, head, pictures, random_task_vector, tiny_clip
from tests.tiny_t5 import texts, tiny_t5

EFFECT = METHODS["bico"](strength=Strength.EFFECT)
BLOCK = "visual.transformer.resblocks.{}."


def moved(source: ClipViT, target: ClipViT, tau: dict[str, Tensor], method=EFFECT, **kwargs) -> dict[str, Tensor]:
    return method.transport(tau, Pair.of(source, target), evidence_for(method, source, target, **kwargs))


def test_scales_are_those_of_the_rows(target: ClipViT) -> None:
    images, labels = pictures(10), torch.arange(10) % CLASSES
    ((_, scales),) = signal_scales(target, [(images, labels)], head(target), [10])
    seen = collect_signals(target, images, labels, head(target), target.sites, [Signal.INPUT, Signal.OUTPUT])
    assert scales.keys() == seen.keys()
    for key, scale in scales.items():
        rows = seen[key].flatten(0, -2)
        assert (scale.squares, scale.rows) == (pytest.approx(float(rows.square().sum())), len(rows))


def test_scales_do_not_depend_on_batches_or_order_and_add_up(target: ClipViT) -> None:
    images, labels, its = pictures(10), torch.arange(10) % CLASSES, head(target)
    ((_, whole),) = signal_scales(target, [(images, labels)], its, [10])
    parts = [(images[s], labels[s]) for s in (slice(0, 4), slice(4, 7), slice(7, 10))]
    (_, first), (_, both) = signal_scales(target, parts, its, [4, 10])
    ((_, rest),) = signal_scales(target, parts[1:], its, [6])
    shuffled = torch.randperm(10)
    ((_, other),) = signal_scales(target, [(images[shuffled], labels[shuffled])], its, [10])
    for key, scale in whole.items():
        for found in (both[key], other[key], first[key].plus(rest[key])):
            assert found == (pytest.approx(scale.squares, rel=1e-12), scale.rows)


def test_padding_has_no_size() -> None:
    model = tiny_t5(1)
    text, more = texts(2, longest=4)
    short, long = (model.prepare([text, other]) for other in (text, " ".join([more] * 4)))
    labels = torch.tensor([0, 1])

    def first(inputs: Tensor) -> dict:
        (_, scales), *_ = signal_scales(model, [(inputs[:1], labels[:1])], torch.randn(2, 13, dtype=torch.float64), [1])
        return scales

    assert short.shape[1] < long.shape[1]
    for ours, theirs in zip(first(short).values(), first(long).values(), strict=True):
        assert ours == (pytest.approx(theirs.squares, rel=1e-5), theirs.rows)


@pytest.mark.parametrize("completion", Completion)
def test_a_model_gets_its_own_update_at_strength_one(source: ClipViT, completion: Completion) -> None:
    tau, fixed = random_task_vector(source), METHODS["bico"](completion=completion)
    strong = moved(source, source, tau, replace(fixed, strength=Strength.EFFECT))
    assert_close(strong, moved(source, source, tau, fixed), atol=1e-9, rtol=1e-5)


def rescaled(model: ClipViT, factor: float) -> ClipViT:
    """The same function: a norm is made smaller and what reads it larger, in the first block's feed-forward part."""
    twin = tiny_clip(2)
    twin.model.load_state_dict(model.model.state_dict())
    block = twin.model.visual.transformer.resblocks[0]
    block.ln_2.weight.data *= factor
    block.ln_2.bias.data *= factor
    block.mlp.c_fc.weight.data /= factor
    return twin


@pytest.mark.parametrize("factor", [0.1, 5.0])
def test_a_target_of_other_scales_becomes_the_same_function(source: ClipViT, target: ClipViT, factor: float) -> None:
    tau, twin, images = random_task_vector(source), rescaled(target, factor), pictures(6, seed=9)
    assert_close(twin.features(images), target.features(images))
    with target.updated(moved(source, target, tau)):
        ours = target.features(images)
    with twin.updated(moved(source, twin, tau)):
        assert_close(twin.features(images), ours, atol=1e-6, rtol=1e-5)
    fixed = METHODS["bico"]()
    with target.updated(moved(source, target, tau, fixed)):
        ours = target.features(images)
    with twin.updated(moved(source, twin, tau, fixed)):  # the control: at strength one it is another
        assert (twin.features(images) - ours).abs().max() > 0.01 * ours.abs().max()


def test_a_site_of_nothing_has_strength_one() -> None:
    some, none = Scale(4.0, 2), Scale(0.0, 2)
    assert effect_strengths(Sizes(some, some), Sizes(none, some)) == (1.0, 1.0)
    assert effect_strengths(Sizes(some, none), Sizes(some, some)) == (1.0, 1.0)


def test_a_bias_follows_the_outputs_and_a_weight_both() -> None:
    ours, theirs = Sizes(Scale(4.0, 1), Scale(9.0, 1)), Sizes(Scale(32.0, 2), Scale(2.0, 2))
    weight, bias = effect_strengths(ours, theirs)
    assert (weight, bias) == (pytest.approx(2 / 3 / (4 / 1)), pytest.approx(1 / 3))
