"""Losses on pairs of texts, each encoded by itself: what sentence encoders are tuned for where there are no classes.

With scores the cosine of a pair is to be its score (Sentence-BERT, Reimers and Gurevych, 2019, arXiv:1908.10084, section 3).
Without, each text is to find its partner among those of the other pairs: multiple negatives ranking (Henderson et al., 2017,
arXiv:1705.00652, section 4.4; as InfoNCE, van den Oord et al., 2018, arXiv:1807.03748), in both directions.

The ranking loss of a batch is no sum over its pairs: who else is in the batch matters. Fine-tuning takes it as it is, its batch
is part of its settings. What calibration takes must add up over batches of any size, so there the pairs to be told from are a
fixed set, the bank, of which one pair at a time is live (`bank_loss`). The gradients that reach a pair of the bank are exactly
those of the ranking loss with the whole bank as one batch, as in gradient caching (Gao et al., 2021, arXiv:2101.06983).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TEMPERATURE = 0.05
"""By which cosines are divided: the scale of 20 that sentence-transformers takes."""
BANK = 64
"""The most pairs that a bank holds. It is part of the loss and not of how the loss is computed."""


def unit(features: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows features"]:
    return F.normalize(features, dim=-1)


def score_loss(
    first: Float[Tensor, "batch features"], second: Float[Tensor, "batch features"], scores: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Squared differences of cosines and scores, summed over the batch."""
    return (F.cosine_similarity(first, second) - scores.to(first)).square().sum()


def ranking_loss(
    first: Float[Tensor, "batch features"], second: Float[Tensor, "batch features"], groups: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Cross-entropy of each text's partner among those of the batch, the mean of both directions, summed over the batch.

    Arguments:
        groups: Pairs of one group are not to be told from each other.
    """
    groups = groups.to(first.device)
    scores = unit(first) @ unit(second).T / TEMPERATURE
    others = (groups[:, None] == groups) & ~torch.eye(len(groups), dtype=torch.bool, device=first.device)
    scores = scores.masked_fill(others, -torch.inf)
    right = torch.arange(len(groups), device=first.device)
    return sum((F.cross_entropy(way, right, reduction="sum") for way in (scores, scores.T)), scores.new_zeros(())) / 2


def make_bank(
    first: Float[Tensor, "pairs features"], second: Float[Tensor, "pairs features"], groups: Int[Tensor, " pairs"]
) -> Float[Tensor, "bank columns"]:
    """Returns pairs to be told from, the first of each group: unit features of both texts, and the group in the last column.

    Float32 holds group numbers up to 2^24 exactly; pairs are numbered by their rows.
    """
    kept = {int(group): row for row, group in reversed(list(enumerate(groups)))}
    rows = sorted(kept.values())
    return torch.cat([unit(first[rows]), unit(second[rows]), groups[rows, None].to(first)], dim=1)


def bank_loss(
    first: Float[Tensor, "batch features"],
    second: Float[Tensor, "batch features"],
    groups: Int[Tensor, " batch"],
    bank: Float[Tensor, "bank columns"],
) -> Float[Tensor, ""]:
    """The ranking loss of the bank with a pair in the place of its group's, for each pair of the batch, summed.

    Arguments:
        groups: As in `ranking_loss`.
        bank: As `make_bank` gives it; it stands still.
    """
    first, second, bank = unit(first), unit(second), bank.to(first)
    ours, theirs = bank[:, :-1].chunk(2, dim=1)
    place_taken = groups.to(first)[:, None] == bank[:, -1]  # (batch, bank)
    among = ours @ theirs.T / TEMPERATURE
    own = (first * second).sum(1, keepdim=True) / TEMPERATURE
    to_bank, from_bank = first @ theirs.T / TEMPERATURE, second @ ours.T / TEMPERATURE  # (batch, bank)
    one_way = _one_way(own, to_bank, from_bank, among, place_taken)
    other_way = _one_way(own, from_bank, to_bank, among.T, place_taken)
    return (one_way + other_way) / 2


def _one_way(
    own: Float[Tensor, "batch 1"],
    outgoing: Float[Tensor, "batch bank"],
    incoming: Float[Tensor, "batch bank"],
    among: Float[Tensor, "bank bank"],
    place_taken: Tensor,
) -> Float[Tensor, ""]:
    """Cross-entropies of the live pair's row, and of the bank's rows, in which the live pair is one more to be told from."""
    row = torch.cat([own, outgoing.masked_fill(place_taken, -torch.inf)], dim=1)
    still = among.expand(len(own), -1, -1).masked_fill(place_taken[:, None], -torch.inf)
    rows = torch.cat([still, incoming[:, :, None]], dim=2).logsumexp(2) - among.diagonal()
    return (row.logsumexp(1) - own[:, 0]).sum() + rows[~place_taken].sum()
