"""What an alignment map is made of: how much the data determined, its spectrum, and the geometry it keeps."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bico.analysis.records import Measurement
from bico.calibration.signals import Signal
from bico.errors import ShapeError

POINTS = 33
"""Places at which a spectrum is kept: enough for a plot, whatever the width."""


@dataclass(frozen=True)
class Geometry:
    """How a map treats the lengths and angles of source-side vectors."""

    length: float
    """Largest | ‖Qᵀu‖ / ‖u‖ − 1 | over probes u in the span that Q carries; rounding only, for any partial isometry."""
    angle: float
    """Largest | ⟨Qᵀu, Qᵀv⟩ − ⟨u, v⟩ | / (‖u‖ ‖v‖) over pairs of probes in that span."""
    kept: float
    """Mean ‖Qᵀu‖² / ‖u‖² over all directions of the source: 1 if nothing is lost, rank / source width if Q is a partial
    isometry."""


def kept_geometry(matrix: Float[Tensor, "source target"], probes: int = 32, seed: int = 0) -> Geometry:
    r"""Checks on random vectors that a map keeps norms and inner products (BiCo, appendix D, eqs. B and C).

    With :math:`QQ^\top = I` (not narrowing, all directions determined) it keeps those of every source vector; a map
    that narrows, or leaves out undetermined directions, keeps them on its span and loses the rest: `kept` tells how
    much.

    Raises:
        ShapeError: If the map is zero.

    Example:
        >>> kept_geometry(torch.eye(4)[:, :3]).kept  # narrowing loses one direction of four
        0.75
    """
    q = matrix.double()
    if not q.any():
        raise ShapeError(f"A map of shape {tuple(q.shape)} that is all zeros keeps no geometry: was it solved?")
    noise = torch.randn(probes, q.shape[1], dtype=q.dtype, generator=torch.Generator().manual_seed(seed))
    u = noise.to(q.device) @ q.T  # in the span of Q's columns, the part of the source that it carries
    u = u / u.norm(dim=1, keepdim=True)
    carried = u @ q
    return Geometry(
        length=float((carried.norm(dim=1) - 1).abs().max()),
        angle=float((carried @ carried.T - u @ u.T).abs().max()),
        kept=float(q.square().sum() / q.shape[0]),
    )


def describe_map(
    matrix: Float[Tensor, "source target"],
    spectrum: Float[Tensor, " values"],
    rank: int,
    tensor: str,
    signal: Signal,
    layer: int | None,
    samples: int,
) -> list[Measurement]:
    """Measures one stored map.

    Arguments:
        matrix: The map.
        spectrum: All singular values of its cross-covariance, descending.
        rank: Directions that the data determined.
        tensor: What the map aligns.
        signal: By which signal; the series of the results.
        layer: The block.
        samples: Calibration samples.

    Returns:
        "rank" (directions), "determined" (rank over the smaller width, 0..1), "length", "angle" and "kept" (see
        `Geometry`), and "spectrum": singular values over the largest, at `POINTS` evenly spaced shares of directions.
    """

    def measured(quantity: str, value: float, at: float | None = None) -> Measurement:
        return Measurement(quantity, signal.value, tensor, layer, value, at=at, samples=samples)

    geometry = kept_geometry(matrix)
    found = [measured("rank", float(rank)), measured("determined", rank / min(matrix.shape))]
    found += [measured(name, getattr(geometry, name)) for name in ("length", "angle", "kept")]
    for index in torch.linspace(0, len(spectrum) - 1, POINTS).round().long().unique().tolist():
        share = index / max(1, len(spectrum) - 1)
        found.append(measured("spectrum", float(spectrum[index] / spectrum[0]), share))
    return found
