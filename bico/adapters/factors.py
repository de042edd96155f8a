"""The update of one linear map as two thin factors: what a LoRA adapter holds of a module."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import ShapeError

_EXACT = 1024
"""Up to this many features on the shorter side a matrix is taken apart whole; wider ones by a sketch of the rank asked for."""
_OVERSAMPLED, _POWERS = 16, 4
"""Of a sketch: directions beyond the rank, and power iterations. Halko et al., 2011, section 4.4: a spectrum that decays
slowly needs a few of the latter."""


@dataclass(frozen=True)
class LowRank:
    r"""The update of a linear map `y = W x + b`: :math:`\tau = s\,B A` of its weight, :math:`s\,\beta` of its bias.

    The scale s is α / r, or α / √r with rank-stabilised LoRA (Kalajdzievski, 2023, arXiv:2312.03732).
    """

    down: Float[Tensor, "rank in"]
    """A, `lora_A` of PEFT."""
    up: Float[Tensor, "out rank"]
    """B, `lora_B` of PEFT."""
    alpha: float
    rslora: bool = False
    bias: Float[Tensor, " out"] | None = None
    """β, the bias of `lora_B` that PEFT has with `lora_bias`."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the linear map."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def moves(self) -> bool:
        """Whether it changes anything: an adapter that nobody trained has zeros for B."""
        changed = bool(self.up.any() and self.down.any())
        return self.scale != 0 and (changed or (self.bias is not None and bool(self.bias.any())))

    def dense(self) -> Float[Tensor, "out in"]:
        """The update as a matrix, in float32 or better."""
        return self.scale * (_wide(self.up) @ _wide(self.down))

    def shift(self) -> Float[Tensor, " out"] | None:
        """The update of the bias, in float32 or better."""
        return None if self.bias is None else self.scale * _wide(self.bias)

    def to(self, dtype: torch.dtype) -> "LowRank":
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, down=self.down.to(dtype), up=self.up.to(dtype), bias=bias)

    def energy(self) -> float:
        """Squared Frobenius norm of the weight's update, from the factors."""
        up, down = self.up.double(), self.down.double()
        return self.scale**2 * float(((up.T @ up) * (down @ down.T)).sum())

    def padded(self, rank: int) -> "LowRank":
        """The same update with more rows and columns, of zeros."""
        more = rank - self.rank
        down = torch.cat([self.down, self.down.new_zeros(more, self.down.shape[1])])
        up = torch.cat([self.up, self.up.new_zeros(self.up.shape[0], more)], 1)
        return replace(self, down=down, up=up, alpha=alpha_for(self.scale, rank, self.rslora))

    def scaled_to(self, scale: float) -> "LowRank":
        """The same update at another scale, which B makes up for."""
        if scale == self.scale:
            return self
        ratio = self.scale / scale
        bias = None if self.bias is None else ratio * self.bias
        return replace(self, up=ratio * self.up, bias=bias, alpha=alpha_for(scale, self.rank, self.rslora))


def alpha_for(scale: float, rank: int, rslora: bool) -> float:
    """Returns the α that gives a scale at a rank.

    Example:
        >>> alpha_for(2.0, 8, rslora=False), alpha_for(2.0, 16, rslora=True)
        (16.0, 8.0)
    """
    return round(scale * (math.sqrt(rank) if rslora else rank), 10)


def concatenated(parts: Sequence[LowRank]) -> LowRank:
    """Returns the sum of several updates of one linear map, exactly: ranks add up.

    Its scale is the first one's, so that the first one's factors stand in it as they are.

    Raises:
        ShapeError: If they are of maps of different shapes.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        if part.shape != first.shape:
            raise ShapeError(f"Updates of maps of shape {first.shape} and {part.shape} cannot be added.")
    scale = first.scale or 1.0
    same = [part.scaled_to(scale) for part in parts]
    down, up = torch.cat([part.down for part in same]), torch.cat([part.up for part in same], 1)
    biases = [part.bias for part in same if part.bias is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    return LowRank(down, up, alpha_for(scale, down.shape[0], first.rslora), first.rslora, bias)


def truncated(update: LowRank, rank: int) -> tuple[LowRank, float]:
    """Returns the nearest update of a rank, at the same scale, and the share of the energy (squared norm) that it keeps.

    By a QR decomposition of either factor and the SVD of a rank × rank matrix: the update itself is never formed.
    """
    if rank >= update.rank:
        return update, 1.0
    q_up, r_up = torch.linalg.qr(update.up.double())
    q_down, r_down = torch.linalg.qr(update.down.double().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T)
    total = float(s.square().sum())
    root = s[:rank].sqrt()
    up, down = q_up @ (u[:, :rank] * root), (q_down @ (vh[:rank].T * root)).T
    alpha = alpha_for(update.scale, rank, update.rslora)
    kept = float(s[:rank].square().sum()) / total if total else 1.0
    made = replace(update, down=down.to(update.down), up=up.to(update.up), alpha=alpha)
    return made, kept


def factorised(update: Float[Tensor, "out in"], rank: int, alpha: float, rslora: bool = False) -> tuple[LowRank, float]:
    """Returns the nearest update of a rank to a matrix, and the share of the energy that it keeps.

    Exact where the shorter side has at most 1,024 features; else by a randomised SVD (Halko et al., 2011, arXiv:0909.4061),
    whose share is what its factors do hold.

    Arguments:
        rank: Cut to the shorter side of the matrix.
        alpha: Of the result.
    """
    matrix = _wide(update)
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= _EXACT:
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same update gives the same adapter
            u, s, v = torch.svd_lowrank(matrix, q=min(rank + _OVERSAMPLED, *matrix.shape), niter=_POWERS)
        vh = v.T
    total = float(matrix.double().square().sum())
    root = s[:rank].sqrt()
    made = LowRank((root[:, None] * vh[:rank]).to(matrix), (u[:, :rank] * root).to(matrix), alpha, rslora)
    made = replace(made, up=made.up / made.scale) if made.scale else made
    return made, float(s[:rank].double().square().sum()) / total if total else 1.0


def _wide(tensor: Tensor) -> Tensor:
    """Half precision as float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
