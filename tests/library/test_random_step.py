"""Chance in the place of what was carried: of the same norms, the same for the same seed, and no transfer to anybody."""

import pytest
import torch
from torch.testing import assert_close

from bico.errors import ConfigError
from bico.last_steps import StepContext
from bico.last_steps.random import Random
from bico.methods import Gathered
from bico.methods.spec import Spec
from bico.methods.variant import carries_expert, get_variant, run
from bico.models.clip.vit import ClipViT
from bico.reporting.baselines import baselines
from tests.library.test_last_steps import samples_of
from tests.tiny import head, random_task_vector


def replaced(vector: dict, seed: int = 0) -> dict:
    return Random(seed).take(vector, StepContext.__new__(StepContext), Gathered()).vector


def test_each_tensor_is_replaced_by_chance_of_its_norm() -> None:
    vector = {"b": torch.full((40, 30), 2.0), "a": torch.zeros(5), "c": torch.randn(2000, dtype=torch.float64)}
    drawn, again, other = replaced(vector), replaced(dict(reversed(vector.items()))), replaced(vector, seed=1)
    assert list(drawn) == list(vector)
    for name, tensor in vector.items():
        assert drawn[name].dtype == tensor.dtype
        assert_close(drawn[name].norm(), tensor.norm())
        assert torch.equal(drawn[name], again[name])  # whatever the order of the parameters
    assert not drawn["a"].any()
    for name in "bc":
        cosine = torch.dot(drawn[name].flatten(), vector[name].flatten()) / vector[name].norm() ** 2
        assert abs(cosine) < 0.15 and not torch.equal(drawn[name], other[name])
    assert replaced({}) == {}


def test_a_search_goes_along_it_as_along_anything(source: ClipViT, target: ClipViT) -> None:
    tau, samples = random_task_vector(source), samples_of(source, target)
    heads = (head(source), head(target))
    plain, chance = (
        run(get_variant(text), tau, source, target, samples, heads) for text in ("bico", "bico+random+search")
    )
    assert chance.curve is not None
    for name, tensor in plain.vector.items():
        assert_close(chance.vector[name].norm(), chance.curve.chosen * tensor.norm())


def test_it_carries_no_expert_and_its_control_is_the_search_of_nothing() -> None:
    spec = Spec.parse("bico+random+search")
    assert (
        not carries_expert(spec) and not get_variant(spec).carries_expert and get_variant("bico+search").carries_expert
    )
    assert [str(one) for one in baselines([spec])][-1] == "none+search"
    assert "none" not in map(str, baselines([Spec.parse("bico+random")]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bico:alpha=x", "alpha='x' is not a finite number"),
        ("bico:alpha=inf", "not a finite number"),
        ("bico:alpha=1:alpha=2", "alpha is given twice"),
        ("few-shot:alpha=2", "few-shot carries no expert"),
        ("none:alpha=2+head", "none carries no expert"),
    ],
)
def test_strengths_that_are_none_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        get_variant(text)


def test_a_strength_of_its_own_multiplies_what_is_carried_before_the_steps(source: ClipViT, target: ClipViT) -> None:
    tau, samples = random_task_vector(source), samples_of(source, target)
    heads = (head(source), head(target))
    one, three, random = (
        run(get_variant(text), tau, source, target, samples, heads, alpha=0.5)
        for text in ("bico", "bico:alpha=3", "bico:alpha=3+random")
    )
    for name, tensor in one.vector.items():
        assert_close(three.vector[name], 6 * tensor)
        assert_close(random.vector[name].norm(), 6 * tensor.norm())
    assert get_variant("bico:alpha=3").method == get_variant("bico").method
