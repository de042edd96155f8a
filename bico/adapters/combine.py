"""Several adapters of one base made one: their sum, their mean, or what TIES leaves of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bico.adapters.adapter import Adapter
from bico.adapters.factors import LowRank, concatenated, factorised, truncated
from bico.errors import MethodError
from bico.task_vector.merging import agreed, largest


class Combination(StrEnum):
    """How adapters are put together."""

    SUM = "sum"
    """Task arithmetic: updates add up."""
    MEAN = "mean"
    """A weighted mean; the sum by the number of adapters."""
    TIES = "ties"
    """Of each entry what most agree on (Yadav et al., 2023, arXiv:2306.01708)."""


def combine(
    adapters: Sequence[Adapter],
    how: Combination = Combination.SUM,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    density: float = 0.2,
) -> tuple[Adapter, dict[str, float]]:
    """Returns one adapter of several, and the share of its energy that each module kept that was cut.

    Sum and mean are exact in the factors, and ranks add up unless cut. TIES looks at entries: its updates are formed one
    module at a time, and cut to `rank`, or to the sum of the ranks.

    Arguments:
        adapters: Of one base; one that has no LoRA of a module adds nothing there.
        weights: By which each is multiplied; one unless told.
        rank: Cuts updates to it.
        density: Of TIES: the share of each update's entries, the largest, that is looked at; a fifth as in the paper.

    Raises:
        MethodError: If there is none, weights are not as many, or they hold what cannot be added: DoRA's magnitudes, tensors
            kept whole, LoRAs of embeddings.
        ShapeError: If they are of different bases.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if not adapters or len(weights) != len(adapters):
        raise MethodError(
            f"{len(adapters)} adapters and {len(weights)} weights cannot be combined: give one weight each."
        )
    if not 0 < density <= 1:
        raise MethodError(f"density={density} must lie above 0 and not above 1.")
    for adapter in adapters:
        if adapter.magnitudes or adapter.whole or adapter.embeddings:
            raise MethodError(
                f"{adapter.place} holds more than LoRAs of linear maps (DoRA, biases, heads or embeddings), which do not add up: "
                "combine the weights that it is merged into."
            )
    how = Combination(how)
    scaled = [w / len(adapters) for w in weights] if how is Combination.MEAN else weights
    join: Callable[[Sequence[LowRank]], tuple[LowRank, float]]
    join = (lambda parts: _ties(parts, density, rank)) if how is Combination.TIES else (lambda parts: _sum(parts, rank))
    modules, kept = {}, {}
    for path in dict.fromkeys(path for adapter in adapters for path in adapter.modules):
        parts = [_times(a.modules[path], w) for a, w in zip(adapters, scaled, strict=True) if path in a.modules]
        modules[path], share = join(parts)
        if share < 1:
            kept[path] = share
    place = " + ".join(adapter.place for adapter in adapters)
    return replace(adapters[0], place=place, modules=modules, notes=()), kept


def _times(update: LowRank, weight: float) -> LowRank:
    bias = None if update.bias is None else weight * update.bias
    return replace(update, up=weight * update.up, bias=bias) if weight != 1 else update


def _sum(parts: Sequence[LowRank], rank: int | None) -> tuple[LowRank, float]:
    whole = concatenated(parts)
    return (whole, 1.0) if rank is None else truncated(whole, rank)


def _ties(parts: Sequence[LowRank], density: float, rank: int | None) -> tuple[LowRank, float]:
    first, whole = parts[0], sum(part.rank for part in parts)
    rank = min(rank or whole, *first.shape)
    made, share = factorised(ties([part.dense() for part in parts], density), rank, float(rank))
    made = made.scaled_to(first.scale or 1.0)
    shifts = [shift for part in parts if (shift := part.shift()) is not None]
    bias = ties(shifts, density) / (made.scale or 1.0) if shifts else None
    return replace(made, bias=bias).to(first.down.dtype), share


def ties(updates: Sequence[Float[Tensor, "*shape"]], density: float) -> Float[Tensor, "*shape"]:
    """Returns what TIES leaves of several updates: of each its largest entries; of each entry the sign with more weight
    behind it; of those that have this sign the mean.

    Example:
        >>> ties([torch.tensor([3.0, 1.0, 0.1, 2.0]), torch.tensor([-1.0, 2.0, 0.1, 0.1])], density=0.5)
        tensor([3., 2., 0., 2.])
    """
    return agreed(torch.stack([largest({"": update}, density)[""] for update in updates]))
