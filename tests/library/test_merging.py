"""Task vectors put together: against plain sums and TIES entry by entry, and strengths that are searched."""

import math

import pytest
import torch

from bico.errors import MethodError
from bico.task_vector.merging import Merging, merged, search_strengths


def vectors(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{k: torch.randn(5, 4, generator=generator) for k in ("a", "b")} for _ in range(count)]


def test_task_arithmetic_is_a_weighted_sum() -> None:
    one, two, three = vectors(3)
    found = merged([one, two, {"b": three["b"]}], [1.0, 0.5, -2.0])
    torch.testing.assert_close(found["a"], one["a"] + 0.5 * two["a"])
    torch.testing.assert_close(found["b"], one["b"] + 0.5 * two["b"] - 2 * three["b"])


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
def test_ties_entry_by_entry(density: float) -> None:
    given, strengths = vectors(3), [1.0, 0.5, 2.0]
    found = merged(given, strengths, Merging.TIES, density)
    flat = [torch.cat([v["a"].flatten(), v["b"].flatten()]).tolist() for v in given]
    made = torch.cat([found["a"].flatten(), found["b"].flatten()]).tolist()
    least = [sorted(map(abs, v), reverse=True)[round(density * len(v)) - 1] for v in flat]
    for place, value in enumerate(made):
        kept = [w * v[place] for v, w, t in zip(flat, strengths, least, strict=True) if abs(v[place]) >= t]
        total = sum(kept)
        same = [x for x in kept if x * total > 0]
        assert value == pytest.approx(sum(same) / len(same) if same else 0.0, abs=1e-6)
    one = merged(given[:1], [0.5], Merging.TIES, 1.0)  # nothing to disagree with, nothing cut
    torch.testing.assert_close(one["a"], 0.5 * given[0]["a"])


def test_strengths_are_found_for_each_and_asked_once() -> None:
    asked: list[tuple[float, ...]] = []

    def loss(strengths: tuple[float, ...]) -> float:
        asked.append(strengths)
        return sum((one - best) ** 2 for one, best in zip(strengths, (2.0, 0.0, 0.5), strict=True))

    assert search_strengths(loss, 3) == (2.0, 0.0, 0.5)
    assert len(asked) == len(set(asked)) < 60
    assert search_strengths(lambda s: 0.0, 2) == (1.0, 1.0)  # what makes no difference stays as it came


def test_what_cannot_be_merged_is_refused() -> None:
    one, two = vectors(2)
    for given, strengths, more, why in (
        ([], [], {}, "0 task vectors"),
        ([one, two], [1.0], {}, "one strength each"),
        ([one], [math.nan], {}, "finite"),
        ([one, {"a": two["a"][:2]}], [1.0, 1.0], {}, r"a is \(2, 4\) and \(5, 4\)"),
        ([one], [1.0], {"how": Merging.TIES, "density": 0.0}, "density=0.0"),
    ):
        with pytest.raises(MethodError, match=why):
            merged(given, strengths, **more)
