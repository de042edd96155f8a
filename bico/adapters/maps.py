"""Maps between two models as transport asks for them: dense, or as thin factors, of either side of a site."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from bico.calibration.scales import Side
from bico.methods.aligned import Aligned
from bico.methods.evidence import Evidence
from bico.methods.protocol import Pair
from bico.methods.strength import Strength, effect_strengths, sizes_of
from bico.models.sites import Site


@runtime_checkable
class Thin(Protocol):
    r"""A map :math:`Q = L R^\top` that is kept as its factors."""

    @property
    def left(self) -> Tensor:
        """(source features, k)."""
        ...

    @property
    def right(self) -> Tensor:
        """(target features, k)."""
        ...


Map: TypeAlias = Tensor | Thin
"""Of shape (source features, target features)."""


@dataclass(frozen=True)
class Sides:
    """How a site's update is carried to a site of the target: by which maps, how strongly."""

    reads: Map | None
    """Q_in; None leaves the input as it is."""
    gives: Map | None
    """Q_out; None leaves the output as it is."""
    gain: float = 1.0
    """Of the weight's update."""
    bias_gain: float = 1.0


Maps: TypeAlias = Callable[[Site, Site], Sides]
"""From a site of the source and one of the target. The map of what is read depends on `Site.reads` alone."""


def through(rows: Float[Tensor, "rows source"], q: Map | None) -> Float[Tensor, "rows target"]:
    """Returns rows in the target's coordinates, `rows @ Q`; as they are without a map."""
    if q is None:
        return rows
    if isinstance(q, Tensor):
        return rows @ q.to(rows)
    return (rows @ q.left.to(rows)) @ q.right.to(rows).T


def size_of(q: Map) -> tuple[int, int]:
    """(source features, target features)."""
    return (q.shape[0], q.shape[1]) if isinstance(q, Tensor) else (q.left.shape[0], q.right.shape[0])


def identity(_ours: Site, _theirs: Site) -> Sides:
    """Maps of a plain copy: every side as it is, which asks for equal widths."""
    return Sides(None, None)


def aligned_maps(method: Aligned, evidence: Evidence, pair: Pair) -> Maps:
    """Returns the maps of an aligned method, with its rule and its strength, from what calibration gathered of a pair."""

    def sides(ours: Site, theirs: Site) -> Sides:
        gains = (1.0, 1.0)
        if method.strength == Strength.EFFECT:
            gains = effect_strengths(sizes_of(ours, Side.SOURCE, evidence), sizes_of(theirs, Side.TARGET, evidence))
        return Sides(*method.maps(theirs, pair, evidence), *gains)

    return sides
