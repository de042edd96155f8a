"""Span corruption: parts of a text are hidden behind sentinels, and the answer says what they were.

    text      thank you for inviting me to your party last week
    input     thank you <extra_id_0> me to your party <extra_id_1> week </s>
    target    <extra_id_0> for inviting <extra_id_1> last </s>

References:
    | Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (Raffel et al., 2020), section 3.1.4
    | https://arxiv.org/abs/1910.10683
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Corruption:
    """How much of each text is hidden. Every text of one length hides as much, so that batches need no padding."""

    density: float = 0.15
    """Share of the tokens that are hidden."""
    span: float = 3.0
    """Mean tokens per hidden span."""

    def hidden(self, length: int) -> int:
        """Tokens hidden of a text of `length` tokens: at least one, and never all."""
        return min(max(round(length * self.density), 1), length - 1)

    def spans(self, length: int) -> int:
        """Hidden spans in a text of `length` tokens; between any two, at least one token stays."""
        hidden = self.hidden(length)
        return min(max(round(hidden / self.span), 1), hidden, length - hidden)


def _parts(total: int, parts: int, rows: int, generator: torch.Generator) -> Int[Tensor, "rows parts"]:
    """Draws `rows` ways to cut `total` into `parts` positive whole numbers, all ways equally likely."""
    cuts = torch.rand(rows, total - 1, generator=generator).argsort(1)[:, : parts - 1].sort(1).values + 1
    ends = torch.cat([torch.zeros(rows, 1, dtype=cuts.dtype), cuts, torch.full((rows, 1), total)], 1)
    return ends.diff(dim=1)


def draw_spans(
    rows: int, length: int, corruption: Corruption, generator: torch.Generator
) -> Bool[Tensor, "rows length"]:
    """Draws which tokens are hidden: kept and hidden spans take turns, a kept one comes first and a hidden one last."""
    hidden, spans = corruption.hidden(length), corruption.spans(length)
    lengths = torch.stack(
        [_parts(length - hidden, spans, rows, generator), _parts(hidden, spans, rows, generator)], dim=2
    ).flatten(1)
    starts = torch.zeros(rows, length, dtype=torch.int64).scatter_(1, lengths.cumsum(1)[:, :-1], 1)
    return starts.cumsum(1) % 2 == 1


def corrupt(
    tokens: Int[Tensor, "rows length"], hidden: Bool[Tensor, "rows length"], sentinels: Int[Tensor, " some"], end: int
) -> tuple[Int[Tensor, "rows seen"], Int[Tensor, "rows hidden_and_sentinels"]]:
    """Returns inputs and targets of texts whose hidden spans are given.

    Arguments:
        tokens: The texts, without an end.
        hidden: Which tokens are hidden; each row as many, in as many spans.
        sentinels: Ids that stand for the first, second, ... hidden span.
        end: Id that closes inputs and targets.

    Raises:
        ValueError: If rows differ in how much they hide, or there are more spans than sentinels.
    """
    first = hidden & ~torch.nn.functional.pad(hidden, (1, 0))[:, :-1]
    counts, spans = hidden.sum(1), first.sum(1)
    if counts.unique().numel() > 1 or spans.unique().numel() > 1:
        raise ValueError(f"Rows hide {counts.tolist()} tokens in {spans.tolist()} spans: give every row as many.")
    if spans[0] > len(sentinels):
        raise ValueError(f"{spans[0]} spans are hidden, and there are only {len(sentinels)} sentinels.")
    rows = len(tokens)
    marks = sentinels[(first.cumsum(1) - 1).clamp(min=0)]
    ends = torch.full((rows, 1), end, dtype=tokens.dtype)
    inputs = torch.where(first, marks, tokens)[~hidden | first].view(rows, -1)
    # A sentinel stands before the first token of its span: each column becomes two, of which one or both or none stay.
    pairs = torch.stack([marks, tokens], 2).flatten(1)
    targets = pairs[torch.stack([first, hidden], 2).flatten(1)].view(rows, -1)
    return torch.cat([inputs, ends], 1), torch.cat([targets, ends], 1)
