"""Whether the maps of what q and k give respect RoPE."""

from collections.abc import Sequence
from enum import StrEnum

from bico.calibration.signals import Signal
from bico.errors import MethodError
from bico.linalg.procrustes import AlignmentMap, MapRule
from bico.linalg.rotary import RotaryHeads, paired_maps
from bico.methods.evidence import Evidence
from bico.methods.protocol import Pair
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
    ours: Site, site: Site, signal: Signal, rule: MapRule, rope: Rope, evidence: Evidence, pair: Pair
) -> AlignmentMap:
    """Returns the map of what a site of the source gives to what one of the target does."""
    free = evidence.map(pair.key(ours, site, signal), rule)
    if rope != Rope.PAIRS or site.role not in (Q, K) or pair.heads[0] is None or pair.heads[1] is None:
        return free
    others = sister(ours, pair.source_sites), sister(site, pair.target_sites)
    found = {site.role: free, others[1].role: evidence.map(pair.key(*others, signal), rule)}
    return dict(zip((Q, K), paired_maps(found[Q], found[K], pair.heads[0], pair.heads[1]), strict=True))[site.role]


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
