"""Maps between two models as transport asks for them: dense, or as thin factors, of either side of a site."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from bico.methods.aligned import Aligned
from bico.methods.evidence import Evidence
from bico.methods.protocol import Pair
from bico.models.depth import TakenSites, take_sites
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


def aligned_maps(
    method: Aligned, evidence: Evidence, pair: Pair, taken: Mapping[str, TakenSites] | None = None
) -> Maps:
    """Returns the maps of an aligned method, with its rule and its strength, from what calibration gathered of a pair.

    Arguments:
        taken: What each of the target's sites takes, by its name: a share is part of the strength. By default what the method
            takes of all the pair's sites.
    """
    known = take_sites(pair.source_sites, pair.target_sites, method.depth) if taken is None else taken

    def sides(ours: Site, theirs: Site) -> Sides:
        one = known[theirs.name]
        gains = (one.share * gain for gain in method.strengths(ours, theirs, one, evidence))
        return Sides(*method.maps(ours, theirs, pair, evidence), *gains)

    return sides
