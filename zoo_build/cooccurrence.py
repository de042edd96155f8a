"""Word vectors from the counts of which tokens stand near which: where the embedding of a small text model starts.

References:
    | Neural Word Embedding as Implicit Matrix Factorization (Levy and Goldberg, 2014)
    | https://papers.nips.cc/paper/5477-neural-word-embedding-as-implicit-matrix-factorization
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def count_pairs(passages: Sequence[Int[Tensor, " _"]], vocabulary: int, window: int) -> Float[Tensor, "tokens tokens"]:
    """Counts, on either side, which tokens stand at most `window` apart; the nearest count 1, farther ones less.

    Arguments:
        passages: Ids of each passage, its end included; pairs across an end count, too, which is little.
        vocabulary: How many ids there are.
        window: The greatest distance; at distance d a pair counts 1 - (d - 1) / window.
    """
    ids = torch.cat(list(passages))
    counts = torch.zeros(vocabulary * vocabulary)
    for distance in range(1, window + 1):
        pairs = torch.bincount(ids[:-distance] * vocabulary + ids[distance:], minlength=len(counts))
        counts += pairs * (1 - (distance - 1) / window)
    square = counts.view(vocabulary, vocabulary)
    return square + square.T


def positive_information(counts: Float[Tensor, "tokens tokens"]) -> Float[Tensor, "tokens tokens"]:
    """Returns the pointwise mutual information of pairs, in nats, with 0 where it is negative.

    Contexts count by their frequency to the power 0.75, as in word2vec, which holds rare ones down.
    """
    rows = counts.sum(1, keepdim=True)
    contexts = counts.sum(0, keepdim=True) ** 0.75
    expected = rows * contexts / contexts.sum()
    return torch.where(counts > 0, (counts / expected).log(), 0.0).clamp(min=0)


def word_vectors(
    passages: Sequence[Int[Tensor, " _"]], vocabulary: int, width: int, generator: torch.Generator, window: int = 5
) -> Float[Tensor, "tokens width"]:
    """Returns a vector per token, of mean square 1 per element, in a random basis.

    The best approximation of rank `width` to the positive information is split evenly between tokens and contexts.
    Its own basis would be much the same for every model of the zoo; a random rotation makes each model's its own.
    Tokens that never occur get random vectors.

    Arguments:
        passages: Ids of each passage.
        vocabulary: How many ids there are.
        width: Numbers per vector.
        generator: The source of randomness.
        window: How far apart two tokens may stand to count as near.
    """
    information = positive_information(count_pairs(passages, vocabulary, window))
    # A randomised eigendecomposition: a few products with the matrix find the leading directions.
    basis = torch.randn(vocabulary, width + 32, generator=generator)
    for _ in range(4):
        basis = torch.linalg.qr(information @ basis).Q
    small = basis.T @ information @ basis
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    leading = values.abs().argsort(descending=True)[:width]
    found = basis @ vectors[:, leading] * values[leading].abs().sqrt()
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    noise = torch.randn(vocabulary, width, generator=generator)
    seen = found.norm(dim=1, keepdim=True) > 1e-6
    unit = torch.nn.functional.normalize(torch.where(seen, found, noise), dim=1)
    return unit @ rotation * width**0.5
