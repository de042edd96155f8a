"""Blocks whose linear maps are not modules of their own, opened so that hooks see each of them."""

from contextlib import ExitStack
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bico.models.encoder.layouts import Layout
from bico.models.fused import Rows, Split, replace


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
                splits[part.path] = Split(_rows(module, part.of))
                replace(block, part.path, splits[part.path], stack)
            module = splits[part.path].parts[part.index]
        elif role in layout.twice:
            first = FirstCall(module)
            replace(block, part.path, first, stack)
            around = block.get_submodule(layout.around)
            handle = around.register_forward_pre_hook(lambda _module, _inputs, first=first: first.begin())
            stack.callback(handle.remove)
            module = first.tokens
        modules[role] = module
    return modules


def _rows(whole: nn.Linear, parts: int) -> list[Rows]:
    """Parts of equal size."""
    biases = [None] * parts if whole.bias is None else whole.bias.chunk(parts)
    return [Rows(weight, bias) for weight, bias in zip(whole.weight.chunk(parts), biases, strict=True)]


class FirstCall(nn.Module):
    """A linear map whose first call, on tokens, goes through a module of its own, and whose other calls no hook sees."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.tokens, self._called = Rows(whole.weight, whole.bias), False

    def begin(self) -> None:
        self._called = False

    def forward(self, x: Tensor) -> Tensor:
        if self._called:
            return F.linear(x, *self.tokens.tensors)
        self._called = True
        return self.tokens(x)
