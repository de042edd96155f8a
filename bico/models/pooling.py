"""From the outputs of an encoder's tokens to the features of a text."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Tokens = Float[Tensor, "batch tokens features"]
Mask = Bool[Tensor, "batch tokens"]
Pooled = Float[Tensor, "batch features"]


def first(hidden: Tokens, mask: Mask) -> Pooled:
    return hidden[:, 0]


def last(hidden: Tokens, mask: Mask) -> Pooled:
    """The last real token."""
    index = mask.size(1) - 1 - mask.int().flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def greatest(hidden: Tokens, mask: Mask) -> Pooled:
    return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)


def mean(hidden: Tokens, mask: Mask) -> Pooled:
    weights = mask.to(hidden)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1)


def mean_by_root(hidden: Tokens, mask: Mask) -> Pooled:
    """The sum over the root of the length."""
    weights = mask.to(hidden)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1).sqrt()


def mean_by_place(hidden: Tokens, mask: Mask) -> Pooled:
    """The mean in which a token weighs as much as its place in the sequence, from one."""
    weights = (mask * torch.arange(1, mask.size(1) + 1, device=mask.device)).to(hidden)[..., None]
    return (hidden * weights).sum(1) / weights.sum(1)


POOLINGS: dict[str, Callable[[Tokens, Mask], Pooled]] = {
    "cls": first,
    "max": greatest,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_by_root,
    "weightedmean": mean_by_place,
    "lasttoken": last,
}
"""By the names of sentence-transformers; of several, features are joined in this order."""


def pool(hidden: Tokens, mask: Mask, modes: tuple[str, ...]) -> Float[Tensor, "batch pooled"]:
    """Returns the features of each text: one pooling, or several side by side.

    Arguments:
        mask: Which tokens are real.
        modes: Of `POOLINGS`.
    """
    return torch.cat([POOLINGS[mode](hidden, mask) for mode in modes], dim=1)
