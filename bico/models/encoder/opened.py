"""Blocks whose linear maps are not modules of their own, opened so that hooks see each of them."""

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bico.models.encoder.layouts import Layout


def opened(block: nn.Module, layout: Layout, stack: ExitStack) -> dict[str, nn.Module]:
    """Returns the modules of a block by role; what was opened for them is closed with the stack.

    Fused maps are replaced by `Split`, and maps that are called a second time on other things than tokens by `FirstCall`.
    """
    modules: dict[str, nn.Module] = {}
    splits: dict[str, Split] = {}
    for role, part in layout.parts.items():
        module: Any = block.get_submodule(part.path)
        if part.of > 1:
            if part.path not in splits:
                splits[part.path] = Split(module, part.of)
                _replace(block, part.path, splits[part.path], stack)
            module = splits[part.path].parts[part.index]
        elif role in layout.twice:
            first = FirstCall(module)
            _replace(block, part.path, first, stack)
            around = block.get_submodule(layout.around)
            handle = around.register_forward_pre_hook(lambda _module, _inputs, first=first: first.begin())
            stack.callback(handle.remove)
            module = first.tokens
        modules[role] = module
    return modules


def _replace(block: nn.Module, path: str, module: nn.Module, stack: ExitStack) -> None:
    place, _, name = path.rpartition(".")
    parent = block.get_submodule(place)
    stack.callback(setattr, parent, name, getattr(parent, name))
    setattr(parent, name, module)


class Rows(nn.Module):
    """Some of the outputs of a linear map: a place for hooks that owns nothing."""

    def __init__(self, whole: nn.Linear, rows: slice) -> None:
        super().__init__()
        bias = None if whole.bias is None else whole.bias[rows]
        self.tensors = (whole.weight[rows], bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.tensors)


class Split(nn.Module):
    """A fused linear map as parts of equal size; gives what the map gives."""

    def __init__(self, whole: nn.Linear, parts: int) -> None:
        super().__init__()
        size = whole.out_features // parts
        self.parts = nn.ModuleList(Rows(whole, slice(n * size, (n + 1) * size)) for n in range(parts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


class FirstCall(nn.Module):
    """A linear map whose first call, on tokens, goes through a module of its own, and whose other calls no hook sees."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.tokens, self._called = Rows(whole, slice(None)), False

    def begin(self) -> None:
        self._called = False

    def forward(self, x: Tensor) -> Tensor:
        if self._called:
            return F.linear(x, *self.tokens.tensors)
        self._called = True
        return self.tokens(x)
