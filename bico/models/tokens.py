"""Tokenizers of transformers, whatever the model: bare of what is the caller's own, known by a digest, batches of their rows."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bico.errors import CheckpointError


def bare_backend(tokenizer: Any, name: str) -> Any:
    """Returns what a tokenizer is, as JSON, and takes its own padding and cutting off, which stand in many a tokenizer's file.

    Arguments:
        name: How messages call the model.

    Raises:
        CheckpointError: If it is a slow one, which does not know where in the text its tokens end.
    """
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{name}: its tokenizer does not know where in the text its tokens end: save it as a fast one, with a "
            "tokenizer.json."
        )
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return json.loads(backend.to_str())


def digest_of(about: Any) -> str:
    """Of what determines tokens, as JSON."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def stack(rows: Sequence[Int[Tensor, "_ fields"]], empty: Sequence[int]) -> Int[Tensor, "batch tokens fields"]:
    """Rows of tokens as a batch, filled up behind them.

    Arguments:
        empty: The fields of a token that is none.
    """
    batch = torch.tensor(empty).repeat(len(rows), max(map(len, rows)), 1)
    for place, row in zip(batch, rows, strict=True):
        place[: len(row)] = row
    return batch
