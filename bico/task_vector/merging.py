"""Several task vectors of one model put together: task arithmetic and TIES, with a strength for each.

References:
    | Editing models with task arithmetic (Ilharco et al., 2023), arXiv:2212.04089
    | TIES-Merging: resolving interference when merging models (Yadav et al., 2023), arXiv:2306.01708
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import MethodError
from bico.task_vector import StateDict

DENSITY = 0.2
"""The share of a task vector's entries that TIES looks at, as in its paper."""
STRENGTHS = (0.0, 0.25, 0.35, 0.5, 0.71, 1.0, 1.41, 2.0)
"""Candidates, in steps of √2, as a search of one strength has them; more than twice what arrived is no merging."""


class Merging(StrEnum):
    """How task vectors are put together."""

    SUM = "sum"
    """Task arithmetic: they add up."""
    TIES = "ties"
    """Of each entry the mean of those that agree with the sign most weight is behind."""


def merged(
    vectors: Sequence[Mapping[str, Tensor]],
    strengths: Sequence[float],
    how: Merging = Merging.SUM,
    density: float = DENSITY,
) -> StateDict:
    """Returns one task vector of several; a parameter that one does not name it leaves as it is.

    Arguments:
        strengths: By which each is multiplied beforehand.
        density: Of TIES: the share of each whole vector's entries, the largest, that is looked at.

    Raises:
        MethodError: If there is no vector, strengths are not as many, one is not finite, two vectors have a parameter of
            different shapes, or `density` is no share.
    """
    if not vectors or len(vectors) != len(strengths):
        raise MethodError(f"{len(vectors)} task vectors and {len(strengths)} strengths: give one strength each.")
    if not 0 < density <= 1:
        raise MethodError(f"density={density} must lie above 0 and not above 1.")
    if not all(torch.isfinite(torch.tensor(strengths))):
        raise MethodError(f"strengths={list(strengths)} must be finite numbers.")
    names = list(dict.fromkeys(name for vector in vectors for name in vector))
    for name in names:
        if len(shapes := {tuple(vector[name].shape) for vector in vectors if name in vector}) > 1:
            raise MethodError(f"Task vectors of different models: {name} is {' and '.join(map(str, sorted(shapes)))}.")
    if how is Merging.TIES and density < 1:
        vectors = [largest(vector, density) for vector in vectors]
    made = {}
    for name in names:
        parts = [w * vector[name] for vector, w in zip(vectors, strengths, strict=True) if name in vector]
        made[name] = agreed(torch.stack(parts)) if how is Merging.TIES else sum(parts, torch.zeros_like(parts[0]))
    return made


def largest(vector: Mapping[str, Tensor], density: float) -> StateDict:
    """A task vector without all but its largest entries, over all parameters together.

    Example:
        >>> largest({"a": torch.tensor([3.0, -0.1]), "b": torch.tensor([2.0, 0.5])}, 0.5)
        {'a': tensor([3., -0.]), 'b': tensor([2., 0.])}
    """
    sizes = torch.cat([tensor.abs().flatten() for tensor in vector.values()])
    count = max(1, round(density * sizes.numel()))
    least = sizes.kthvalue(sizes.numel() - count + 1).values
    return {name: tensor * (tensor.abs() >= least) for name, tensor in vector.items()}


def agreed(updates: Float[Tensor, "updates ..."]) -> Float[Tensor, "..."]:
    """Of each entry, the mean of those that have the sign of their sum; entries of zero have no say.

    Example:
        >>> agreed(torch.tensor([[3.0, 0.0, 1.0], [-1.0, 2.0, 2.0]]))
        tensor([3.0000, 2.0000, 1.5000])
    """
    alike = updates * (updates.sign() == updates.sum(0).sign())
    return alike.sum(0) / (alike != 0).sum(0).clamp(min=1)


def search_strengths(
    loss: Callable[[tuple[float, ...]], float],
    count: int,
    candidates: Sequence[float] = STRENGTHS,
    rounds: int = 2,
) -> tuple[float, ...]:
    """Returns a strength for each of several vectors: the best that all may share, then each in turn with the others held.

    Arguments:
        loss: Of strengths; asked once for each that is tried.
        rounds: How often all are gone through, unless one round changes nothing.

    Example:
        >>> search_strengths(lambda s: (s[0] - 1.0) ** 2 + (s[1] - 0.25) ** 2, 2)
        (1.0, 0.25)
    """
    known: dict[tuple[float, ...], float] = {}

    def best(tried: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        for one in tried:
            if one not in known:
                known[one] = loss(one)
        return min(tried, key=known.__getitem__)  # the first of equals

    found = best([(one,) * count for one in sorted(candidates, key=lambda one: abs(one - 1))])
    for _ in range(rounds):
        before = found
        for place in range(count):
            found = best([found, *((*found[:place], one, *found[place + 1 :]) for one in candidates)])
        if found == before:
            break
    return found
