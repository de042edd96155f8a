"""What a model of any family does with its parameters: they are finite, and a task vector comes and goes."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from bico.errors import CheckpointError
from bico.task_vector import StateDict, check_same_architecture


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
                parameters[name].add_(tensor.to(parameters[name]), alpha=alpha)
        yield
    finally:
        for name, tensor in before.items():
            parameters[name].copy_(tensor)
