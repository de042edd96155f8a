"""What a model is called with: a tensor, or tensors in a tuple, list or dictionary; the samples are the first axis of all."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bico.errors import CalibrationError

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def each(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same structure with every tensor changed.

    Raises:
        CalibrationError: If there is anything else in it than tensors.
    """
    match inputs:
        case Tensor():
            return change(inputs)
        case Mapping():
            named = {name: each(part, change) for name, part in inputs.items()}
            return named if type(inputs) is dict else type(inputs)(**named)
        case tuple() | list():
            parts = [each(part, change) for part in inputs]
            return type(inputs)(*parts) if hasattr(inputs, "_fields") else type(inputs)(parts)
    raise CalibrationError(
        f"A batch holds a {type(inputs).__name__}: inputs and outputs of a model must be tensors, or tuples, lists or "
        "dictionaries of tensors."
    )


def part(inputs: Any, rows: slice) -> Any:
    """Returns some of a batch's samples."""
    return each(inputs, lambda tensor: tensor[rows])


def twice(inputs: Any) -> Any:
    """Returns a batch with every sample repeated: all of them, and all of them again."""
    return each(inputs, lambda tensor: torch.cat([tensor, tensor]))
