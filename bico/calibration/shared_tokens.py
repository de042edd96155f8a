"""Rows that the tokens of two models share: where both tokenizers end a token at the same character of the same text.

Where tokenizers cut a text alike, tokens are matched one by one. Where they do not, the tokens between two shared ends are
brought to one row: of activations the last one's, or their sum; of gradients the sum, since a change of what all of them
give changes the loss by the sum of theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bico.calibration.signals import Signal
from bico.errors import CalibrationError
from bico.models.places import PADDING, TEXT, is_text

_SAMPLE = TEXT << 8
"""Places that one sample takes among those of a batch."""


class Between(StrEnum):
    """What becomes of the activations of the tokens between two shared ends."""

    LAST = "last"
    SUM = "sum"


@dataclass(frozen=True)
class Groups:
    """One model's tokens of a batch, by the rows that they make together."""

    row: Int[Tensor, " tokens"]
    """Of each token of the flattened batch; -1 for none."""
    last: Int[Tensor, " rows"]
    """The token that ends each row."""

    def rows(self, signal: Float[Tensor, "batch tokens features"], summed: bool) -> Float[Tensor, "rows features"]:
        flat = signal.flatten(0, 1)
        if not summed:
            return flat[self.last.to(flat.device)]
        kept = (self.row >= 0).nonzero().flatten()
        rows = flat.new_zeros(len(self.last), flat.size(1))
        return rows.index_add_(0, self.row[kept].to(flat.device), flat[kept.to(flat.device)])


@dataclass(frozen=True)
class Share:
    """How much of some texts two tokenizers cut alike."""

    characters: int = 0
    shared: int = 0
    """Of them, those in tokens that end where one of the other tokenizer does."""

    def __add__(self, other: "Share") -> "Share":
        return Share(self.characters + other.characters, self.shared + other.shared)

    @property
    def part(self) -> float:
        """Between 0 and 1; 1 where there is no text."""
        return self.shared / self.characters if self.characters else 1.0


def shared_rows(ours: Int[Tensor, "batch ours"], theirs: Int[Tensor, "batch theirs"]) -> tuple[Groups, Groups]:
    """Returns how the tokens of two models make the rows that they share, in the same order, from the tokens' places."""
    keys = [_keys(places) for places in (ours, theirs)]
    ends = keys[0][torch.isin(keys[0], keys[1]) & (keys[0] >= 0)].unique()
    first, second = (_groups(places.flatten(), key, ends) for places, key in zip((ours, theirs), keys, strict=True))
    return first, second


def share(ours: Int[Tensor, "batch ours"], theirs: Int[Tensor, "batch theirs"]) -> Share:
    """Returns how much of the texts lies in tokens that end where one of the other model does: of the model with less."""
    found = []
    for mine, other in ((ours, theirs), (theirs, ours)):
        keys, text = _keys(mine), is_text(mine)
        before = torch.cat([torch.zeros_like(mine[:, :1]), mine[:, :-1]], dim=1)
        # The first token of a text begins at its first character, whatever stands before it.
        same_text = (mine - 1) // TEXT == (before - 1) // TEXT
        begin = torch.where(same_text, before, (mine - 1) // TEXT * TEXT + 1)
        length = (mine - begin) * text
        alike = torch.isin(keys, _keys(other)).reshape(mine.shape)
        found.append(Share(int(length.sum()), int((length * alike).sum())))
    return min(found, key=lambda one: one.part)


def _keys(places: Int[Tensor, "batch tokens"]) -> Int[Tensor, " places"]:
    """Places of a flattened batch, which tell samples apart; -1 for padding."""
    samples = torch.arange(len(places), device=places.device)[:, None]
    return torch.where(places == PADDING, PADDING, samples * _SAMPLE + places).flatten()


def _groups(places: Tensor, keys: Tensor, ends: Tensor) -> Groups:
    real = (keys >= 0).nonzero().flatten()
    row = torch.full_like(keys, -1)
    if len(ends):
        at = torch.searchsorted(ends, keys[real]).clamp(max=len(ends) - 1)
        there = ends[at]
        # Behind a text's last shared end there is no row; what is no text has one only with its counterpart.
        same_text = (there - 1) // TEXT == (keys[real] - 1) // TEXT
        between = (there > keys[real]) & same_text & is_text(places[real]) & is_text(there % _SAMPLE)
        belongs = (there == keys[real]) | between
        row[real] = torch.where(belongs, at, -1)
    last = real[torch.searchsorted(keys[real], ends, right=True) - 1]
    return Groups(row, last)


def check_shared(found: Share, source: str, target: str) -> None:
    """Raises CalibrationError if two tokenizers have nothing in common on some texts."""
    if found.characters and not found.shared:
        raise CalibrationError(
            f"{source} and {target} share none of their tokens' ends: of {found.characters} characters 0 % lie in tokens that "
            "end where one of the other tokenizer does, so no rows can be matched. Choose a pair that reads texts alike."
        )


Take = Callable[[Tensor, Signal], Tensor]
"""From a signal of a batch to its rows."""


def takes(groups: Groups, between: Between) -> Take:
    """How one model's signals become rows: gradients are summed; activations as asked for."""

    def take(signal: Tensor, kind: Signal) -> Tensor:
        if signal.ndim == 2:  # behind the pooling a sample is one row
            return signal
        return groups.rows(signal, kind.is_gradient or between is Between.SUM)

    return take
