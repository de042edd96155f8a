"""Gradients of the task loss with respect to a model's own parameters, summed or as votes of single samples."""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from bico.calibration.covariances import until_snapshots
from bico.errors import CalibrationError
from bico.models.inputs import Inputs, part
from bico.models.protocol import Calibratable
from bico.task_vector import StateDict


class ParameterGradient(StrEnum):
    """A statistic of the per-sample gradients of one parameter; of the parameter's own shape."""

    SUM = "sum"
    """`Σ_i ∂ℓ_i/∂θ`: the gradient of the summed loss."""
    VOTES = "votes"
    """`Σ_i sign(−∂ℓ_i/∂θ)`: how many samples want an entry raised, less those that want it lowered."""


Gradients = dict[ParameterGradient, StateDict]
"""Each statistic of each parameter, by the parameter's name."""


def parameter_gradients(
    model: Calibratable,
    batches: Iterable[tuple[Inputs, Tensor]],
    head: Tensor | None,
    kinds: Iterable[ParameterGradient],
    snapshots: Sequence[int],
) -> Iterator[tuple[int, Gradients]]:
    """Streams statistics of the loss gradients of all trainable parameters, at the model's present weights.

    The loss is summed, so sums add up over batches. Votes need every sample's own gradient: one forward and backward
    pass per sample, which no batch size changes. (`torch.func.vmap` would save a tenth to a third of the time, has no
    rule for PyTorch's fused attention, and holds a batch's worth of gradients of the whole model at once.)

    Arguments:
        batches: Prepared inputs and targets of the loss (labels, or probabilities) in the order of the calibration set,
            cut at the snapshots (`split_at`).
        head: Classification head (classes, features), in which the task loss is taken; frozen; None if it takes none.
        kinds: Which statistics to collect.
        snapshots: Sample counts at which the statistics so far are yielded.

    Yields:
        Pairs of a sample count and the statistics up to there. The tensors are the caller's own.

    Raises:
        CalibrationError: If the loss does not depend on a parameter, a gradient is not finite, or the batches end
            before the last snapshot or step over one.
    """
    kinds = sorted(set(kinds))
    sums = {kind: {name: _zeros(tensor) for name, tensor in model.state().items()} for kind in kinds}
    for (inputs, labels), seen, due in until_snapshots(batches, lambda batch: len(batch[1]), snapshots):
        step = 1 if ParameterGradient.VOTES in kinds else len(labels)
        for start in range(0, len(labels), step):
            rows = slice(start, start + step)
            for name, gradient in loss_gradients(model, part(inputs, rows), labels[rows], head).items():
                for kind in kinds:
                    # VOTES is of the descent direction, hence minus.
                    sums[kind][name] += -gradient.sign() if kind is ParameterGradient.VOTES else gradient
        if due:
            yield seen, {kind: {name: tensor.clone() for name, tensor in state.items()} for kind, state in sums.items()}


def loss_gradients(model: Calibratable, inputs: Inputs, labels: Tensor, head: Tensor | None) -> StateDict:
    """Returns the gradient of the summed loss of one batch for every trainable parameter; the model is left frozen.

    Raises:
        CalibrationError: If the loss does not depend on a parameter, or a gradient is not finite.
    """
    leaves = [leaf.requires_grad_() for leaf in model.trainable()]
    try:
        found = torch.autograd.grad(model.loss(inputs, labels, head), leaves, allow_unused=True)
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)
    gradients = dict(zip(model.state(), found, strict=True))
    for name, gradient in gradients.items():
        if gradient is None:
            raise CalibrationError(f"The task loss does not depend on {name}: no gradient reaches it.")
        if not gradient.isfinite().all():
            raise CalibrationError(
                f"The loss gradient of {name} is not finite: the model's weights or the calibration inputs are broken."
            )
    return gradients


def _zeros(like: Tensor) -> Tensor:
    """Sums of gradients need more digits than those of bfloat16."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
