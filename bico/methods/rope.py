"""Whether the maps of what q and k give respect RoPE."""

from collections.abc import Sequence
from enum import StrEnum

from bico.calibration.signals import Signal, signal_key
from bico.errors import MethodError
from bico.linalg.procrustes import AlignmentMap, MapRule
from bico.linalg.rotary import RotaryHeads, paired_maps
from bico.methods.evidence import Evidence
from bico.models.sites import Site

Q, K = "q", "k"


class Rope(StrEnum):
    """What maps of the outputs of q and k may do."""

    FREE = "free"
    """Anything, each by itself."""
    PAIRS = "pairs"
    """Go from heads to heads and rotate within RoPE's pairs, the same for q and k (`bico.linalg.rotary`)."""


HeadsOfBoth = tuple[RotaryHeads | None, RotaryHeads | None]


def output_map(
    site: Site, signal: Signal, rule: MapRule, rope: Rope, evidence: Evidence, sites: Sequence[Site], heads: HeadsOfBoth
) -> AlignmentMap:
    """Returns the map of what a site of the target gives.

    Arguments:
        sites: All of the target's, among them the other one of q and k.
        heads: Of source and target.
    """
    free = evidence.map(signal_key(site, signal), rule)
    ours, theirs = heads
    if rope != Rope.PAIRS or site.role not in (Q, K) or ours is None or theirs is None:
        return free
    other = sister(site, sites)
    found = {site.role: free, other.role: evidence.map(signal_key(other, signal), rule)}
    return dict(zip((Q, K), paired_maps(found[Q], found[K], ours, theirs), strict=True))[site.role]


def sister(site: Site, sites: Sequence[Site]) -> Site:
    """The q of a k in the same block, and the other way round."""
    wanted = (site.stack, site.block, K if site.role == Q else Q)
    return next(one for one in sites if (one.stack, one.block, one.role) == wanted)


def check_heads(rope: Rope, heads: HeadsOfBoth) -> None:
    """Raises MethodError if maps are to respect pairs that the models have not, or not alike."""
    if rope != Rope.PAIRS:
        return
    ours, theirs = heads
    if ours is None or theirs is None:
        raise MethodError("rope=pairs is for decoders, whose heads are known: leave it out.")
    if bool(ours.pairs) != bool(theirs.pairs):
        raise MethodError("rope=pairs: one model has RoPE and the other learns its positions: use rope=free.")
