"""From examples to tokens that know whether they are to be written, and where in the text they end."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bico.errors import DataError
from bico.models.decoder.rendered import Rendered, render, within
from bico.models.places import BEGIN, PADDING, closing, ending
from bico.models.tokens import bare_backend, digest_of, stack

FIELDS = 3
"""Of each token: its id, whether it is one that the loss asks for, and its place."""
Prepared = Int[Tensor, "batch tokens fields"]


class Tokens:
    """A tokenizer of transformers, as a decoder is given its tokens."""

    def __init__(self, tokenizer: Any, longest: int, known: int, name: str) -> None:
        """Arguments:
            tokenizer: A fast one, which knows where in the text its tokens end.
            longest: Tokens that a text is cut to.
            known: Tokens that the model's embedding has.

        Raises:
            CheckpointError: If the tokenizer is a slow one.
        """
        self._tokenizer, self._longest, self._known, self._name = tokenizer, longest, known, name
        self._end = tokenizer.eos_token_id
        # What fills up a batch stands behind all that is read, where no position sees it: any token will do.
        pad = tokenizer.pad_token_id
        self.pad = int(pad) if pad is not None and pad < known else 0
        about = [bare_backend(tokenizer, name), self._end, getattr(tokenizer, "chat_template", None)]
        self.digest = digest_of(about)

    def __call__(self, examples: Sequence[Any]) -> Prepared:
        """Tokens of each example, filled up to the longest.

        Raises:
            DataError: If nothing of a completion is left, or the model has no place for a token.
        """
        return self.stack([self._row(example) for example in examples])

    def stack(self, rows: Sequence[Int[Tensor, "_ fields"]]) -> Prepared:
        return stack(rows, (self.pad, 0, PADDING))

    def is_cut(self, example: Any) -> bool:
        """Whether an example has more tokens than are read."""
        return len(self._tokens(render(example, self._tokenizer, self._name))) > self._longest

    def _row(self, example: Any) -> Int[Tensor, "tokens fields"]:
        rendered = render(example, self._tokenizer, self._name)
        row = torch.tensor(self._tokens(rendered)[: self._longest]).reshape(-1, FIELDS)
        if len(row):
            row[0, 1] = 0  # nothing stands before it to tell it from
        shown = rendered.text[:40]
        if not row[:, 1].any():
            raise DataError(
                f"{self._name}: nothing of the completion of {shown!r}… is left: its prompt has {self._longest} tokens or "
                "more, or it is too short; leave such rows out, or shorten their prompts."
            )
        if int(row[:, 0].max()) >= self._known:
            raise DataError(
                f"{self._name}: {shown!r}… has token {int(row[:, 0].max())}, and the model knows {self._known}: the tokenizer "
                "is another model's, or was given more tokens."
            )
        return row

    def _tokens(self, rendered: Rendered) -> list[tuple[int, int, int]]:
        encoded = self._tokenizer(
            rendered.text, add_special_tokens=not rendered.whole, return_offsets_mapping=True, verbose=False
        )
        found, place = [], BEGIN
        for token, of, (_, end) in zip(
            encoded["input_ids"], encoded.sequence_ids(0), encoded["offset_mapping"], strict=True
        ):
            content = None if of is None else within(rendered.contents, end)
            here = closing(place) if content is None else ending(content, end - rendered.contents[content][0])
            # Pieces of one character never step back.
            place = max(place, here)
            found.append((token, int(of is not None and within(rendered.answers, end) is not None), place))
        if rendered.closed and self._end is not None:
            if found and found[-1][0] == self._end:  # some tokenizers put it themselves
                found[-1] = (self._end, 1, found[-1][2])
            else:
                found.append((self._end, 1, closing(place)))
        return found
