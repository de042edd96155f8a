"""The loss of a linear probe on a model's features, for every family that is measured by one."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def probe_scores(
    features: Float[Tensor, "batch features"], head: Float[Tensor, "classes columns"]
) -> Float[Tensor, "batch classes"]:
    """Class scores of a probe whose biases are the last column (`bico.evaluation.probe.as_head`)."""
    return features @ head[:, :-1].T + head[:, -1]


def probe_loss(
    features: Float[Tensor, "batch features"],
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
    head: Float[Tensor, "classes columns"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the probe, summed over the batch.

    Arguments:
        labels: Class indices, or a probability for every class.
    """
    return class_loss(probe_scores(features, head), labels)


def class_loss(
    scores: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Cross-entropy of class scores, summed over the batch."""
    return F.cross_entropy(scores, labels.to(scores.device), reduction="sum")
