"""Task vectors: what fine-tuning changed, one tensor per parameter (Ilharco et al., 2023, arXiv:2212.04089).

A state is a plain dictionary from parameter names to tensors; so is a task vector.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from bico.errors import CheckpointError

StateDict = dict[str, Tensor]


def check_finite(named: Iterable[tuple[str, Tensor]], model: str) -> None:
    """Raises CheckpointError at the first parameter that is not finite.

    Arguments:
        model: How the message calls the model.
    """
    for parameter, tensor in named:
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{model}: parameter {parameter} holds NaN or infinite values; the checkpoint is broken."
            )


def check_same_architecture(state: Mapping[str, Tensor], reference: Mapping[str, Tensor], what: str) -> None:
    """Raises unless `state` has exactly the parameters of `reference`, with the same shapes, all finite.

    Raises:
        CheckpointError: Naming `what` and the first parameter that is missing, unexpected, of another shape, or
            not finite.
    """
    for name, tensor in reference.items():
        if name not in state:
            raise CheckpointError(f"{what} has no parameter {name!r}: is it a checkpoint of another architecture?")
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{what} has another architecture: {name} is {tuple(state[name].shape)} there and "
                f"{tuple(tensor.shape)} in the model. Give a checkpoint fine-tuned from this very model."
            )
        if not state[name].isfinite().all():
            raise CheckpointError(f"{what} holds NaN or infinite values in {name}: the file or its training is broken.")
    if extra := sorted(set(state) - set(reference)):
        raise CheckpointError(f"{what} has a parameter the model lacks: {extra[0]!r} (of {len(extra)}).")


def subtract(fine_tuned: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]) -> StateDict:
    """Returns the task vector `fine_tuned - pretrained`, float32.

    Raises:
        CheckpointError: If the two do not have the same parameters and shapes.
    """
    check_same_architecture(fine_tuned, pretrained, "The fine-tuned checkpoint")
    return {name: fine_tuned[name].float() - tensor.float() for name, tensor in pretrained.items()}


def scale(vector: Mapping[str, Tensor], alpha: float) -> StateDict:
    return {name: alpha * tensor for name, tensor in vector.items()}


def add(state: Mapping[str, Tensor], vector: Mapping[str, Tensor], alpha: float = 1.0) -> StateDict:
    """Returns `state + alpha * vector`; parameters that the vector does not name stay as they are.

    Raises:
        CheckpointError: If the vector names a parameter that the state lacks, or with another shape.
    """
    touched = {name: state[name] for name in vector if name in state}
    check_same_architecture(vector, touched, "The task vector")
    return {name: t + alpha * vector[name].to(t) if name in vector else t for name, t in state.items()}


@contextmanager
def added(parameters: StateDict, vector: Mapping[str, Tensor], alpha: float) -> Iterator[None]:
    """Adds a task vector to live parameters for the time of the context; afterwards they are bit for bit as before.

    Raises:
        CheckpointError: If the vector is of another architecture.
    """
    check_same_architecture(vector, {k: parameters[k] for k in vector if k in parameters}, "The task vector")
    before = {name: parameters[name].clone() for name in vector}
    try:
        with torch.no_grad():
            for name, tensor in vector.items():
                parameters[name].copy_(summed(parameters[name], tensor, alpha))
        yield
    finally:
        for name, tensor in before.items():
            parameters[name].copy_(tensor)


def summed(parameter: Tensor, update: Tensor, alpha: float) -> Tensor:
    """Returns `parameter + alpha * update` in the parameter's dtype; of a short one (bfloat16) the sum is rounded once, not the
    update before it as well.
    """
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.add(parameter.to(wide), update.to(parameter.device, wide), alpha=alpha).to(parameter.dtype)


def norm(vector: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all parameters."""
    return sum(float(t.double().square().sum()) for t in vector.values()) ** 0.5
