"""The whole method in one call, for those who have two models and a task vector in hand."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from bico.calibration.covariances import Batch, Covariances, Heads, cross_covariances
from bico.calibration.parameter_gradients import Gradients, parameter_gradients
from bico.calibration.scales import Scales, Side, signal_scales
from bico.errors import CalibrationError
from bico.methods import Gathered, Method, Needs, Pair
from bico.methods.bico import BiCo
from bico.methods.evidence import most_directions
from bico.models.protocol import COMPLETION, Calibratable, Model
from bico.models.sites import Site
from bico.task_vector import StateDict

NO_HEADS: Heads = (None, None)
BICO = BiCo()


def transfer(
    tau: Mapping[str, Tensor],
    source: Calibratable,
    target: Calibratable,
    batches: Sequence[Batch],
    heads: Heads = NO_HEADS,
    method: Method = BICO,
) -> StateDict:
    """Carries a task vector of the source over to the target: one forward-backward pass of each, then closed form.

    The command line does the same in cached stages.

    Arguments:
        tau: The source's task vector.
        batches: The calibration samples.
        heads: Classification heads (classes, features) of source and target; the loss of a wrapped module needs none.
        method: From `bico.methods`; its `needs` say which passes are made.

    Returns:
        The target's task vector; use it with `target.updated(...)` or add it to a state dictionary.

    Raises:
        MethodError: If the method cannot serve this pair.
        CalibrationError: If the calibration samples reach some site or parameter not at all, or with values that are
            not finite; or if a model's loss is taken in a head and there is none.
    """
    pair = Pair.of(source, target)
    method.check(pair)
    return method.transport(tau, pair, gather(source, target, batches, heads, method))


def gather(
    source: Calibratable, target: Calibratable, batches: Sequence[Batch], heads: Heads, method: Method
) -> Gathered:
    """Returns the evidence that a method needs, from all samples of the batches."""
    return gather_needs(source, target, batches, heads, method.needs)


def gather_needs(
    source: Calibratable,
    target: Calibratable,
    batches: Sequence[Batch],
    heads: Heads,
    needs: Needs,
    sites: Sequence[Site] | None = None,
) -> Gathered:
    """Returns the evidence asked for, from all samples of the batches.

    Arguments:
        sites: The target's sites whose maps are wanted; all of them by default.
    """
    count = sum(len(batch.labels) for batch in batches) if needs else 0
    if needs:
        for model, head in zip((source, target), heads, strict=True):
            if head is None and isinstance(model, Model) and COMPLETION not in model.losses:
                raise CalibrationError(f"{model.name} takes its loss in a classification head: give `heads`.")
    covariances: Covariances = {}
    gradients: Gradients = {}
    scales: dict[Side, Scales] = {}
    if signals := needs.signals:
        beside = most_directions(needs.beside)
        ((_, covariances),) = cross_covariances(
            source, target, batches, heads, signals, [count], sites, beside=beside, grams=needs.grams
        )
    if kinds := needs.gradients:
        theirs = ((batch.target, batch.labels) for batch in batches)
        ((_, gradients),) = parameter_gradients(target, theirs, heads[1], kinds, [count])
    if needs.scales:
        for side, model, head in zip(Side, (source, target), heads, strict=True):
            inputs = ((batch.source if side is Side.SOURCE else batch.target, batch.labels) for batch in batches)
            ((_, scales[side]),) = signal_scales(model, inputs, head, [count])
    return Gathered(count, covariances, gradients, scales, wanted=needs.maps)
