"""Patch grids of two sizes: the tokens of one picture model on the grid of another."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bico.errors import ShapeError


def resample_tokens(
    tokens: Float[Tensor, "batch source_tokens features"],
    source_grid: tuple[int, int],
    target_grid: tuple[int, int],
) -> Float[Tensor, "batch target_tokens features"]:
    """Brings a signal of a picture model onto another model's patch grid; the class token is kept as it is.

    Bilinear with `align_corners=False`, as THESEUS and BiCo (section 3.2) do it.

    Arguments:
        tokens: Class token first, then the patches row by row.
        source_grid: Patches (down, across) of the model that made `tokens`.
        target_grid: Patches (down, across) wanted.
    """
    if source_grid == target_grid:
        return tokens
    batch, count, features = tokens.shape
    if count != 1 + source_grid[0] * source_grid[1]:
        raise ShapeError(f"{count} tokens are not one class token and a {source_grid[0]}x{source_grid[1]} patch grid.")
    picture = tokens[:, 1:].transpose(1, 2).reshape(batch, features, *source_grid)
    picture = F.interpolate(picture, size=target_grid, mode="bilinear", align_corners=False)
    return torch.cat([tokens[:, :1], picture.flatten(2).transpose(1, 2)], dim=1)
