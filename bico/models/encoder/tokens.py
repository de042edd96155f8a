"""From texts to tokens that know where in the text they end, so that the tokens of two tokenizers can be matched.

A token's place is one number that grows along the sequence: 0 for what stands before the first text, then the character
that the token ends at, then one more for what closes the text, and so on with the second text of a pair.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bico.errors import CheckpointError
from bico.models.places import BEGIN, PADDING, closing, ending
from bico.models.tokens import bare_backend, digest_of, stack

FIELDS = 3
"""Of each token: its id, which of two texts it belongs to as the model wants it said, and its place."""
Prepared = Int[Tensor, "batch tokens fields"]


class Tokens:
    """A tokenizer of transformers with the texts' own preparations."""

    def __init__(
        self, tokenizer: Any, longest: int, lower: bool = False, prompt: str = "", name: str = "model"
    ) -> None:
        """Arguments:
            tokenizer: A fast one, which knows where in the text its tokens end.
            longest: Tokens that a text is cut to.
            lower: Whether texts are put into lower case first.
            prompt: What is put before every text.

        Raises:
            CheckpointError: If the tokenizer is a slow one, or has no token for padding.
        """
        backend = bare_backend(tokenizer, name)
        if tokenizer.pad_token_id is None:
            raise CheckpointError(f"{name}: its tokenizer has no token for padding (`pad_token`).")
        self._tokenizer, self._longest, self._lower, self._prompt = tokenizer, longest, lower, prompt
        self.pad = int(tokenizer.pad_token_id)
        self.digest = digest_of([backend, lower, prompt, tokenizer.truncation_side])

    def __call__(self, examples: Sequence[Any]) -> Prepared:
        """Tokens of each example, padded to the longest: of one text, or of two that the tokenizer joins in its own form.

        Arguments:
            examples: Strings, or texts with `parts` (`bico.data.text.Text`).
        """
        texts = [[self._put(part) for part in getattr(example, "parts", (example,))] for example in examples]
        return self.stack([self._row(*parts) for parts in texts])

    def stack(self, rows: Sequence[Int[Tensor, "_ fields"]]) -> Prepared:
        return stack(rows, (self.pad, 0, PADDING))

    def _put(self, text: str) -> str:
        return self._prompt + (text.lower() if self._lower else text)

    def _row(self, first: str, *more: str) -> Int[Tensor, "tokens fields"]:
        second = " ".join(more) if more else None  # tokenizers join two texts at most
        encoded = self._tokenizer(
            first, second, truncation=True, max_length=self._longest, return_offsets_mapping=True, verbose=False
        )
        texts, ends = encoded.sequence_ids(0), [end for _, end in encoded["offset_mapping"]]
        kinds = encoded.encodings[0].type_ids
        places, place = [], BEGIN
        for text, end in zip(texts, ends, strict=True):
            # What is no text closes the one before it. Pieces of one character never step back.
            here = closing(place) if text is None else ending(text, max(end - len(self._prompt), 0))
            places.append(place := max(place, here))
        return torch.tensor([encoded["input_ids"], kinds, places]).T.contiguous()
