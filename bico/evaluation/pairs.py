"""How well a model's features order pairs of texts, and find the partner of a text."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bico.errors import CalibrationError, ShapeError
from bico.evaluation.measures import Measures
from bico.models.protocol import Model

SPEARMAN, RECALL = "spearman", "recall@1"
"""What pairs with scores and pairs without are measured by."""
DEPTHS = 1, 10


def measure_of(labels: Tensor) -> str:
    """The measure of pairs with these labels: scores, or groups."""
    return SPEARMAN if labels.is_floating_point() else RECALL


@torch.no_grad()
def measure_pairs(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_batch: Callable[[int], None] = lambda seen: None,
) -> Measures:
    """Measures a model on pairs: by Spearman's correlation of cosine and score, or by recall among all partners.

    Arguments:
        batches: Prepared pairs (batch, 2, ...) and their scores or groups (batch,).
        on_batch: Called with the number of pairs seen so far.

    Raises:
        ShapeError: If there are no pairs.
        CalibrationError: If a feature is not finite.
    """
    features, labels, seen = [], [], 0
    for inputs, said in batches:
        features.append(model.features(inputs))
        labels.append(said)
        on_batch(seen := seen + len(said))
    if not seen:
        raise ShapeError("There is nothing to evaluate: the split has no pairs.")
    (first, second), known = torch.cat(features).chunk(2, dim=1), torch.cat(labels)
    if not (first.isfinite().all() and second.isfinite().all()):
        raise CalibrationError(f"Features of {model.name} are not finite: its weights are broken.")
    if measure_of(known) == SPEARMAN:
        return Measures(SPEARMAN, {SPEARMAN: 100 * spearman(F.cosine_similarity(first, second), known)})
    return Measures(RECALL, {f"recall@{k}": 100 * recall(first, second, known, k) for k in DEPTHS})


def spearman(cosines: Float[Tensor, " pairs"], scores: Float[Tensor, " pairs"]) -> float:
    """Rank correlation, equal values at their mean rank; 0 if either is constant, which tells no order.

    Example:
        >>> spearman(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([1.0, 2.0, 3.0]))
        1.0
    """
    from scipy.stats import rankdata  # slow to import, and only needed here

    ranks = [torch.from_numpy(rankdata(values.double().cpu().numpy())) for values in (cosines, scores)]
    first, second = (rank - rank.mean() for rank in ranks)
    scale = float(first.norm() * second.norm())
    return round(float(first @ second) / scale, 12) if scale else 0.0


def recall(
    first: Float[Tensor, "pairs features"],
    second: Float[Tensor, "pairs features"],
    groups: Int[Tensor, " pairs"],
    k: int,
) -> float:
    """The share of first texts with a partner among the k second texts of the largest cosine. Another's that is as large as
    the partner's counts against it, so a model that gives all texts one feature finds nothing.

    Arguments:
        groups: Second texts of the pair's own group are partners, too.
    """
    ours, theirs, groups = F.normalize(first, dim=1), F.normalize(second, dim=1), groups.to(first.device)
    found = 0
    for rows in torch.arange(len(groups), device=first.device).split(256):
        cosines, partner = ours[rows] @ theirs.T, groups[rows, None] == groups
        best = cosines.masked_fill(~partner, -torch.inf).amax(1, keepdim=True)
        found += int((((cosines >= best) & ~partner).sum(1) < k).sum())
    return found / len(groups)
