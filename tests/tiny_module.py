"""A network of nobody's family, as somebody may bring one, and its like in other coordinates."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bico.calibration.covariances import Batch
from bico.models.wrapped import Wrapped

CLASSES, INPUTS = 5, 12
summed = nn.CrossEntropyLoss(reduction="sum")


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, conv: bool) -> None:
        super().__init__()
        linear = (lambda a, b: nn.Conv2d(a, b, 1)) if conv else nn.Linear
        self.up, self.down = linear(width, hidden), linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """A residual network over rows, or over the pixels of a picture."""

    def __init__(self, width: int = 12, depth: int = 2, conv: bool = False, hidden: int = 12) -> None:
        super().__init__()
        self.conv = conv
        self.embed = nn.Conv2d(INPUTS, width, 1) if conv else nn.Linear(INPUTS, width)
        self.blocks = nn.ModuleList(Block(width, hidden, conv) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)) if self.conv else x)


def net(seed: int = 0, **shape: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**shape).double()


def samples(count: int = 200, conv: bool = False, seed: int = 0) -> list[Batch]:
    torch.manual_seed(seed)
    inputs = torch.randn(count, INPUTS, 3, 4) if conv else torch.randn(count, INPUTS)
    return [Batch(inputs.double(), inputs.double(), torch.arange(count) % CLASSES)]


def vector_of(model: Wrapped, seed: int = 5, size: float = 0.3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: size * torch.randn_like(tensor) for name, tensor in model.state().items()}


def rotation(size: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]


def rotated(module: Net, stream: Tensor, hidden: Tensor) -> Net:
    """The same function in other coordinates: the residual stream turned, the hidden features permuted."""
    turned = copy.deepcopy(module)

    def change(linear: nn.Module, out: Tensor | None, inside: Tensor | None) -> None:
        weight = linear.weight.data.flatten(1)
        weight = weight if inside is None else weight @ inside
        weight = weight if out is None else out.T @ weight
        linear.weight.data.copy_(weight.reshape(linear.weight.shape))
        if out is not None:
            linear.bias.data.copy_(linear.bias.data @ out)

    change(turned.embed, stream, None)
    for block in turned.blocks:
        change(block.up, hidden, stream)
        change(block.down, stream, hidden)
    change(turned.head, None, stream)
    return turned


class Attention(nn.Module):
    """One head; q, k and v read the very same tensor."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        scores = scores if bias is None else scores + bias[:, None, None]
        return self.head((x + self.o(scores.softmax(-1) @ self.v(x))).mean(1))


def attention(seed: int, width: int = 8) -> Attention:
    torch.manual_seed(seed)
    return Attention(width).double()
