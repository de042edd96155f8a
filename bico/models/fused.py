"""Fused linear maps, taken apart for the time of a pass so that hooks see each part; what is put in their place owns nothing."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Rows(nn.Module):
    """Some of the outputs of a linear map: a place for hooks."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Arguments:
        weight: (out, in), the map's own numbers.
        bias: (out,).
        """
        super().__init__()
        self.tensors = (weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.tensors)


class Split(nn.Module):
    """A fused linear map as parts; gives what the map gives."""

    def __init__(self, parts: Sequence[Rows], turns: int = 1) -> None:
        """Arguments:
        turns: How often the parts take turns along the outputs, as where each head has its q, k and v side by side.
        """
        super().__init__()
        self.parts, self._turns = nn.ModuleList(parts), turns

    def forward(self, x: Tensor) -> Tensor:
        given = [part(x) for part in self.parts]
        if self._turns == 1:
            return torch.cat(given, dim=-1)
        return torch.cat([y.unflatten(-1, (self._turns, -1)) for y in given], dim=-1).flatten(-2)


def replace(parent: nn.Module, path: str, module: nn.Module, stack: ExitStack) -> None:
    """Puts a module in another's place until the stack is closed."""
    place, _, name = path.rpartition(".")
    owner = parent.get_submodule(place)
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, module)
