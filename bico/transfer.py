"""The whole method in one call, for those who have two models and a task vector in hand."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from bico.calibration import Batch, cross_covariances
from bico.methods import Method, Pair
from bico.models.base import Model
from bico.procrustes import Completion, procrustes
from bico.task_vector import State


def transfer(
    tau: Mapping[str, Tensor],
    source: Model,
    target: Model,
    batches: Sequence[Batch],
    heads: tuple[Tensor, Tensor],
    method: Method,
    completion: Completion = Completion.PARTIAL,
) -> State:
    """Carries a task vector of the source over to the target: one forward-backward pass of each, then closed form.

    The command line does the same in cached stages.

    Arguments:
        tau: The source's task vector.
        batches: The calibration samples.
        heads: Classification heads (classes, features) of source and target.
        method: From `bico.methods`.
        completion: What maps do outside the calibrated span.

    Returns:
        The target's task vector; use it with `target.updated(...)` or add it to a state dictionary.

    Raises:
        MethodError: If the method cannot serve this pair.
        CalibrationError: If the calibration samples reach some site not at all, or with values that are not finite.
    """
    pair = Pair(source.sites, target.sites, source.state(), target.state())
    covariances = {}
    if method.needs:
        count = sum(len(batch.labels) for batch in batches)
        ((_, covariances),) = cross_covariances(source, target, batches, heads, method.needs, [count])
    return method.transport(tau, pair, lambda key: procrustes(covariances[key], completion).matrix)
