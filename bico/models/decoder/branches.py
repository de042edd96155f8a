"""Several completions of one prompt, read at once: the prompt stands there once, and no completion sees another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Prepared = Int[Tensor, "_ fields"]
"""A text's tokens: ids, and whether each is asked for, first."""


@dataclass(frozen=True)
class Packed:
    """Prompts with a branch for each completion behind them, filled up to the longest."""

    ids: Int[Tensor, "batch tokens"]
    positions: Int[Tensor, "batch tokens"]
    """A branch goes on where its prompt ends."""
    seen: Bool[Tensor, "batch tokens tokens"]
    """What each token looks at: what stands before it in its own text, and itself."""
    before: Int[Tensor, "asked 2"]
    """Of each token that is asked for: the row, and the place of the token before it in its text."""
    wanted: Int[Tensor, " asked"]
    """Its id."""
    text: Int[Tensor, " asked"]
    """Which text it is of: those of one prompt together, in their order."""


def pack(texts: Sequence[Sequence[Prepared]]) -> Packed:
    """Puts texts that begin alike together, as far as nothing is asked of what they share.

    Arguments:
        texts: Of each row, with all its completions.
    """
    packed = [_row(row) for row in texts]
    longest = max(len(ids) for ids, *_ in packed)
    ids, positions = (torch.zeros(len(packed), longest, dtype=torch.int64) for _ in range(2))
    # What fills up looks at itself, so that no line of the attention is empty.
    seen = torch.eye(longest, dtype=torch.bool).repeat(len(packed), 1, 1)
    before, wanted, text, count = [], [], [], 0
    for number, (row, places, looks, asked) in enumerate(packed):
        size = len(row)
        ids[number, :size], positions[number, :size], seen[number, :size, :size] = row, places, looks
        for place, previous, branch in asked:
            before.append((number, previous))
            wanted.append(int(row[place]))
            text.append(count + branch)
        count += len(texts[number])
    return Packed(ids, positions, seen, *map(torch.tensor, (before, wanted, text)))


def _row(
    texts: Sequence[Prepared],
) -> tuple[Tensor, Tensor, Bool[Tensor, "tokens tokens"], list[tuple[int, int, int]]]:
    """Ids, positions, what each token sees, and of each one that is asked for its place, that before, and its branch."""
    shared = _shared(texts)
    parts = [texts[0][:shared, 0], *(text[shared:, 0] for text in texts)]
    branch = torch.cat([torch.full((len(part),), number - 1) for number, part in enumerate(parts)])  # -1: the prompt
    places = torch.cat([torch.arange(shared), *(torch.arange(shared, len(text)) for text in texts)])
    own = (branch[:, None] == branch[None]) | (branch[None] == -1)
    looks = own & (torch.arange(len(branch))[:, None] >= torch.arange(len(branch))[None])
    asked, start = [], shared
    for number, text in enumerate(texts):
        for offset in text[shared:, 1].nonzero()[:, 0].tolist():
            place = start + offset
            asked.append((place, place - 1 if offset else shared - 1, number))
        start += len(text) - shared
    return torch.cat(parts), places, looks, asked


def _shared(texts: Sequence[Prepared]) -> int:
    """Tokens that all texts begin with, before any that is asked for."""
    least = min(int(text[:, 1].nonzero()[0, 0]) for text in texts)
    first = texts[0]
    for place in range(least):
        if any(text[place, 0] != first[place, 0] for text in texts):
            return place
    return least
