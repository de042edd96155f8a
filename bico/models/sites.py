"""Sites: the linear maps of a model, and where their numbers live."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bico.errors import ShapeError
from bico.task_vector import StateDict


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a site lives: outputs `start:stop` of a parameter, or all of it."""

    parameter: str
    start: int | None = None
    stop: int | None = None
    transposed: bool = False
    """Stored as (in, out), as CLIP's `proj` is; the site's own orientation is always (out, in)."""
    period: int | None = None
    """Outputs `start:stop` of every so many, as where each head has its q, k and v side by side."""

    def read(self, state: Mapping[str, Tensor]) -> Tensor:
        """The tensor as the site sees it: a weight as (out, in), whatever 1x1 window a convolution adds behind."""
        tensor = state[self.parameter]
        if tensor.ndim > 2 and all(size == 1 for size in tensor.shape[2:]):
            tensor = tensor.flatten(1)
        part = self._part(tensor)
        return part if self.period is None else part.flatten(0, 1)

    def write(self, state: StateDict, value: Tensor) -> None:
        place = self._part(state[self.parameter])
        place.copy_(value.reshape(place.shape))

    def _part(self, tensor: Tensor) -> Tensor:
        """A view of the slot's own numbers."""
        if self.transposed and tensor.ndim == 2:
            tensor = tensor.T
        if self.period is None:
            return tensor[self.start : self.stop]
        return tensor.unflatten(0, (-1, self.period))[:, self.start : self.stop]


@dataclass(frozen=True)
class Site:
    """One linear map `y = W x + b` of a model, with `W` of shape (out, in)."""

    name: str
    block: int | None
    """Index of the transformer block; None behind the last block (CLIP's `proj`)."""
    role: str
    """q k v out_proj c_fc c_proj proj ..."""
    weight: Slot
    bias: Slot | None
    reads: str
    """Name of the tensor the site reads; sites that share it (q, k, v) share its covariance and its map."""
    shape: tuple[int, int]
    """(out, in)."""
    stack: str = ""
    """Which stack of blocks, in a model that has several: each is matched by its own depth."""
    feature_axis: int = -1
    """Where the features lie in what the site reads and gives: -3 for a convolution over (batch, features, height, width)."""

    @property
    def group(self) -> str:
        """The block's name: the unit in which alignment maps are solved."""
        place = "head" if self.block is None else f"block-{self.block}"
        return f"{self.stack}-{place}" if self.stack else place


def assemble(
    weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], sites: Iterable[Site], like: Mapping[str, Tensor]
) -> StateDict:
    """Returns per-site updates as parameters: slices of a fused parameter are put together again.

    Arguments:
        weights: Update of each site's weight, (out, in), by site name.
        biases: Update of each site's bias, (out,), by site name, for the sites that have one.
        sites: The sites to fill, all of them.
        like: The target's parameters, for shapes.

    Raises:
        ShapeError: If an update does not have its site's shape.
    """
    sites = list(sites)
    slots = [(s.name, s.weight, weights[s.name]) for s in sites]
    slots += [(s.name, s.bias, biases[s.name]) for s in sites if s.bias is not None]
    # NaN marks what no slice has filled: a forgotten part of a fused parameter must not pass for "no update".
    state = {slot.parameter: _unfilled(like[slot.parameter]) for _, slot, _ in slots}
    for name, slot, value in slots:
        if slot.read(state).shape != value.shape:
            raise ShapeError(
                f"Update of site {name} has shape {tuple(value.shape)}, but {slot.parameter} takes "
                f"{tuple(slot.read(state).shape)} there."
            )
        slot.write(state, value.to(state[slot.parameter]))
    for parameter, tensor in state.items():
        if tensor.isnan().any():
            raise ShapeError(f"Part of {parameter} was left without an update: a site is missing or its update is NaN.")
    return state


def _unfilled(like: Tensor) -> Tensor:
    """NaN of a parameter's shape, in float32 or better: an update has more digits than weights in bfloat16."""
    return torch.full_like(like, torch.nan, dtype=torch.promote_types(like.dtype, torch.float32))
