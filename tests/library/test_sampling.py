import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.sampling import (
    Sampling,
    centroid_distances,
    choose_samples,
    draw_samples,
    draw_unlabelled,
    set_sizes,
)
from bico.errors import CalibrationError, NotEnoughSamplesError
from bico.finetune import endless_order

CLASSES = 4
PINNED_DRAW = [965, 466, 860, 992, 656, 736, 379, 631]
PINNED_UNLABELLED = [692, 312, 502, 678, 955, 48, 839, 783]
LABELS = torch.tensor([0] * 30 + [1] * 20 + [2] * 10 + [3] * 25)[torch.randperm(85, generator=torch.manual_seed(5))]
DISTANCES = torch.rand(85, generator=torch.manual_seed(6))


def chosen(sampling: str, count: int, seed: int = 0) -> Tensor:
    return choose_samples(Sampling(sampling), LABELS, CLASSES, count, seed, DISTANCES)


def counts(indices: Tensor) -> list[int]:
    return LABELS[indices].bincount(minlength=CLASSES).tolist()


@given(st.sampled_from(list(Sampling)), st.integers(1, 10), st.integers(0, 1000))
def test_sets_are_nested_distinct_and_repeatable(sampling: Sampling, count: int, seed: int) -> None:
    full = chosen(sampling, 10, seed)
    size = set_sizes(sampling, [count], CLASSES)[count]
    assert torch.equal(chosen(sampling, count, seed), full[:size])
    assert len(full.unique()) == len(full) == set_sizes(sampling, [10], CLASSES)[10]


@pytest.mark.parametrize("sampling", Sampling)
def test_seeds_draw_different_sets(sampling: Sampling) -> None:
    drawn = {tuple(chosen(sampling, 3, seed).tolist()) for seed in range(8)}
    assert len(drawn) > 1


def test_random_is_the_plain_draw() -> None:
    assert torch.equal(chosen("random", 20, 3), draw_samples(85, 20, 3))


@pytest.mark.parametrize("count", [1, 3, 4, 10, 40])
def test_balanced_classes_differ_by_at_most_one_sample(count: int) -> None:
    found = counts(chosen("class-balanced", count))
    assert sum(found) == count and max(found) - min(found) <= 1


def test_a_class_that_has_run_out_leaves_its_turn_to_the_others() -> None:
    assert counts(chosen("class-balanced", 60)) in ([17, 17, 10, 16], [17, 16, 10, 17], [16, 17, 10, 17])


def test_k_per_class() -> None:
    assert counts(chosen("per-class", 1)) == [1] * 4
    assert counts(chosen("per-class", 7)) == [7] * 4


@pytest.mark.parametrize(("sampling", "sign"), [("centroid-near", 1), ("centroid-far", -1)])
def test_centroid_sampling_takes_each_classs_extreme(sampling: str, sign: int) -> None:
    picked = chosen(sampling, 8)
    for label in range(CLASSES):
        mine = [int(i) for i in picked if LABELS[i] == label]
        ranked = sorted((i for i in range(85) if LABELS[i] == label), key=lambda i: sign * float(DISTANCES[i]))
        assert mine == ranked[:2]


def test_half_and_one_class_leave_the_others_out() -> None:
    for seed in range(5):
        half, one = counts(chosen("half-class", 25, seed)), counts(chosen("one-class", 9, seed))
        assert sum(n > 0 for n in half) == 2 and sum(half) == 25
        assert sorted(one) == [0, 0, 0, 9]


def test_where_one_class_is_too_small_as_few_more_as_needed_follow() -> None:
    sizes = LABELS.bincount().tolist()
    for seed in range(5):
        found = counts(chosen("one-class", 40, seed))
        whole = [label for label in range(CLASSES) if found[label] == sizes[label]]
        assert sum(found) == 40 and sum(0 < n < size for n, size in zip(found, sizes, strict=True)) <= 1
        (first,) = [label for label, n in enumerate(counts(chosen("one-class", 1, seed))) if n]
        assert first in whole


@pytest.mark.parametrize(
    ("sampling", "count", "message"),
    [
        ("random", 86, "86 calibration samples asked for, but the training split holds 85"),
        ("random", 0, "0 calibration samples"),
        ("class-balanced", 86, "the training split holds 85"),
        ("one-class", 86, "the training split holds 85"),
        ("half-class", 56, "of the 2 classes that half-class leaves"),
        ("per-class", 11, "class 2 of the training split holds 10"),
    ],
)
def test_too_few_samples_are_an_error(sampling: str, count: int, message: str) -> None:
    with pytest.raises(NotEnoughSamplesError, match=message):
        chosen(sampling, count)


def test_going_by_distance_needs_distances() -> None:
    with pytest.raises(CalibrationError, match="sampling=centroid-near goes by distances"):
        choose_samples(Sampling.CENTROID_NEAR, LABELS, CLASSES, 4, 0)


def test_distances_to_centroids() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    # class 0: unit features e1 and e2, centroid (1/2, 1/2); class 1: e1 and -e1, centroid 0
    assert_close(centroid_distances(features, labels), torch.tensor([0.5**0.5, 0.5**0.5, 1.0, 1.0]))


def test_every_class_gives_its_own_centroid() -> None:
    generator = torch.manual_seed(0)
    features, labels = torch.randn(50, 3, generator=generator), torch.arange(50) % 7
    unit = features / features.norm(dim=1, keepdim=True)
    expected = torch.stack([(unit[i] - unit[labels == labels[i]].mean(0)).norm() for i in range(50)])
    assert_close(centroid_distances(features, labels), expected)


def expert_order(count: int, available: int, seed: int) -> list[int]:
    order = endless_order(available, seed)
    return [int(next(order)) for _ in range(count)]


def shares(purposes: tuple[str, str], count: int, available: int, seeds: int = 200) -> float:
    """Mean share of one purpose's first samples that are among another's, over all pairs of equal seeds."""
    draw = {
        "expert": lambda seed: expert_order(count, available, seed),
        "calibration": lambda seed: draw_samples(available, count, seed).tolist(),
        "unlabelled": lambda seed: draw_unlabelled(available, (), count, seed).tolist(),
    }
    first, second = (draw[purpose] for purpose in purposes)
    return sum(len({*first(seed)} & {*second(seed)}) for seed in range(seeds)) / (seeds * count)


@pytest.mark.parametrize(
    "purposes", [("calibration", "expert"), ("unlabelled", "expert"), ("calibration", "unlabelled")]
)
def test_sets_of_one_seed_for_two_purposes_share_what_chance_gives(purposes: tuple[str, str]) -> None:
    """48 of 400: chance is 12 %, with a standard error of 0.3 % over 200 seeds; one stream for both would share all."""
    assert shares(purposes, 48, 400) == pytest.approx(0.12, abs=0.012)


@pytest.mark.parametrize("sampling", [s for s in Sampling if not s.by_distance])
def test_no_strategy_follows_the_order_of_the_experts_training(sampling: Sampling) -> None:
    """Where two samples stand in both orders is independent: a rank correlation over seeds of about zero."""
    labels, products = torch.arange(60) % 3, []
    for seed in range(60):
        drawn = choose_samples(sampling, labels, 3, 10, seed)
        place = torch.empty(60)
        place[torch.tensor(expert_order(60, 60, seed))] = torch.arange(60.0)
        products.append(float(place[drawn].mean() - 29.5))
    assert abs(sum(products) / len(products)) < 4 * 17.3 / len(drawn) ** 0.5 / 60**0.5


def test_which_samples_a_seed_draws_is_pinned() -> None:
    """They enter the keys one by one, so another draw is no stale artefact; but tables that were published change."""
    assert draw_samples(1000, 8, 0).tolist() == PINNED_DRAW
    assert draw_unlabelled(1000, PINNED_DRAW, 8, 0).tolist() == PINNED_UNLABELLED
