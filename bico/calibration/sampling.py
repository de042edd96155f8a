"""Which training samples calibrate a pair: named strategies, seeded and nested.

Every strategy orders the training split once per seed; the set for N is the first N of that order, so the first 50 of
the set for 100 are the set for 50.

A seed is that of one purpose: fine-tuning with seed 0, calibration with seed 0 and inputs without labels with seed 0 draw
from streams that have nothing to do with each other. With one stream for all, the calibration set for 48 would be the
first batch that the expert was trained on.
"""

import zlib
from collections.abc import Iterable
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bico.errors import CalibrationError, NotEnoughSamplesError


class Purpose(StrEnum):
    """What is drawn. Fine-tuning has its seed to itself (`bico.finetune`): experts that were made stay the same."""

    CALIBRATION = "calibration"
    UNLABELLED = "unlabelled"
    HELD_OUT = "held-out"


class Sampling(StrEnum):
    """How calibration samples are chosen (BiCo, table B; K per class: tables 3, C and F)."""

    RANDOM = "random"
    """Uniformly from the training split."""
    CLASS_BALANCED = "class-balanced"
    """Classes take turns, in an order of their own each round."""
    CENTROID_NEAR = "centroid-near"
    """Classes take turns, each giving the sample nearest to its centroid first."""
    CENTROID_FAR = "centroid-far"
    """Classes take turns, each giving the sample farthest from its centroid first."""
    HALF_CLASS = "half-class"
    """Uniformly from half of the classes (rounded up), which the seed chooses."""
    ONE_CLASS = "one-class"
    """Uniformly from one class, which the seed chooses; where it is too small, from as few more as the count needs.

    Cars has some forty training samples per class, and the paper's table takes a hundred.
    """
    PER_CLASS = "per-class"
    """Classes take turns until each has given K samples: sample counts are K, not N."""

    @property
    def by_distance(self) -> bool:
        return self in (Sampling.CENTROID_NEAR, Sampling.CENTROID_FAR)


def draw_samples(available: int, count: int, seed: int) -> Int[Tensor, " count"]:
    """Returns the indices of a calibration set drawn uniformly without replacement.

    Raises:
        NotEnoughSamplesError: If fewer than `count` samples are available.
    """
    _check(count, available, "the training split")
    return torch.randperm(available, generator=generator_of(Purpose.CALIBRATION, seed))[:count]


def draw_unlabelled(available: int, taken: Iterable[int], count: int, seed: int) -> Int[Tensor, " count"]:
    """Returns the indices of inputs that serve without their labels, drawn uniformly from those not taken.

    Nested: the first 50 of 100 are those for 50.

    Raises:
        NotEnoughSamplesError: If fewer than `count` are left.

    Example:
        >>> sorted(draw_unlabelled(5, taken=[1, 3], count=3, seed=0).tolist())
        [0, 2, 4]
    """
    taken = set(taken)
    if not 0 < count <= available - len(taken):
        raise NotEnoughSamplesError(
            f"{count} unlabelled inputs asked for, but the training split holds {available}, of which {len(taken)} serve "
            f"with labels: lower --unlabelled to {available - len(taken)}."
        )
    order = torch.randperm(available, generator=generator_of(Purpose.UNLABELLED, seed))
    return torch.tensor([index for index in order.tolist() if index not in taken][:count])


def set_sizes(sampling: Sampling, samples: Iterable[int], classes: int) -> dict[int, int]:
    """Returns, for each count asked for (N, or K per class), how many samples the set has.

    Example:
        >>> set_sizes(Sampling.PER_CLASS, [1, 2, 5], classes=10)
        {1: 10, 2: 20, 5: 50}
    """
    per_count = classes if sampling is Sampling.PER_CLASS else 1
    return {count: count * per_count for count in samples}


def choose_samples(
    sampling: Sampling,
    labels: Int[Tensor, " samples"],
    classes: int,
    count: int,
    seed: int,
    distances: Float[Tensor, " samples"] | None = None,
) -> Int[Tensor, " chosen"]:
    """Returns the indices of a calibration set; those for a smaller count are its beginning.

    Arguments:
        labels: Class indices of the training split.
        classes: How many classes the task has.
        count: Samples in all; for K per class, K per class.
        seed: Of everything that is left to chance.
        distances: Of each sample to its class's centroid (`centroid_distances`), for the strategies that go by it.

    Raises:
        NotEnoughSamplesError: If the split, the chosen classes, or one class (for K per class) hold too few samples.
        CalibrationError: If a strategy that goes by distance has no distances.
    """
    sampling = Sampling(sampling)
    if sampling is Sampling.RANDOM:
        return draw_samples(len(labels), count, seed)
    generator = generator_of(Purpose.CALIBRATION, seed)
    order = torch.randperm(len(labels), generator=generator)
    if sampling in (Sampling.HALF_CLASS, Sampling.ONE_CLASS):
        present = labels.unique()
        shuffled = present[torch.randperm(len(present), generator=generator)]
        if sampling is Sampling.ONE_CLASS:
            _check(count, len(order), "the training split")
            turn = shuffled.argsort()[torch.searchsorted(present, labels[order])]  # when a sample's class comes
            return order[turn.argsort(stable=True)][:count]
        kept = shuffled[: (len(present) + 1) // 2]
        order = order[torch.isin(labels[order], kept)]
        _check(count, len(order), f"the training split of the {len(kept)} classes that {sampling} leaves")
        return order[:count]
    if sampling is Sampling.PER_CLASS:
        sizes = labels.bincount(minlength=classes)
        rarest = int(sizes.argmin())
        _check(count, int(sizes[rarest]), f"class {rarest} of the training split")
    if sampling.by_distance:
        if distances is None:
            raise CalibrationError(f"sampling={sampling} goes by distances to class centroids, and none were given.")
        order = distances.argsort(stable=True, descending=sampling is Sampling.CENTROID_FAR)
    total = set_sizes(sampling, [count], classes)[count]
    _check(total, len(labels), "the training split")
    # A sample's round is its place within its class; within a round, chance decides which class comes first.
    by_class = order[labels[order].argsort(stable=True)]
    starts = F.pad(labels.bincount(minlength=classes).cumsum(0), (1, 0))[:-1]
    rounds = torch.arange(len(labels)) - starts[labels[by_class]]
    turns = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    return by_class[(rounds + turns).argsort()][:total]


def centroid_distances(
    features: Float[Tensor, "samples features"], labels: Int[Tensor, " samples"]
) -> Float[Tensor, " samples"]:
    """Returns each sample's Euclidean distance to the mean of its class, on unit features."""
    unit = F.normalize(features, dim=1)
    classes = int(labels.max()) + 1
    sums = unit.new_zeros(classes, unit.shape[1]).index_add_(0, labels, unit)
    centroids = sums / labels.bincount(minlength=classes).clamp(min=1)[:, None]
    return (unit - centroids[labels]).norm(dim=1)


def _check(count: int, available: int, where: str) -> None:
    if not 0 < count <= available:
        raise NotEnoughSamplesError(
            f"{count} calibration samples asked for, but {where} holds {available}: lower --samples to between 1 and {available}."
        )


def generator_of(purpose: Purpose, seed: int) -> torch.Generator:
    """Returns a generator whose stream belongs to one purpose and seed (>= 0) and to no other pair of them."""
    entropy = np.random.SeedSequence([zlib.crc32(purpose.value.encode()), seed])  # crc32: the same on every machine
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
