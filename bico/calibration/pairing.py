"""Which of the source's signals each of the target's meets: that of its counterpart, and beside it those that sums take.

Products of rows, and the maps that are made of them, are called by the target's signal key where they are those of the
counterpart by relative depth. Others, which only a sum over blocks asks for (`bico.models.depth`), are called by both.
"""

from collections.abc import Collection, Iterable, Sequence

from bico.calibration.signals import Signal, SignalKey, signal_key
from bico.errors import CalibrationError
from bico.models.depth import Depth, take_sites
from bico.models.matching import match_sites
from bico.models.sites import Site

BESIDE = "<-"
"""Between the names of a target's tensor and of a source's that is not its counterpart's."""

Partners = dict[SignalKey, dict[SignalKey, SignalKey]]
"""By the target's signal key: the source's that it meets, by what their product is called."""


def pair_key(ours: Site, theirs: Site, counterpart: Site, signal: Signal) -> SignalKey:
    """Returns what the product of one signal at two sites is called.

    Arguments:
        counterpart: The source's site of `theirs` by relative depth.
    """
    target, source = signal_key(theirs, signal), signal_key(ours, signal)
    return target if source == signal_key(counterpart, signal) else (f"{target[0]}{BESIDE}{source[0]}", signal)


def is_beside(tensor: str) -> bool:
    """Whether a product is called by two tensors.

    Example:
        >>> is_beside("blocks.1.c_fc<-blocks.3.c_fc"), is_beside("blocks.1.c_fc")
        (True, False)
    """
    return BESIDE in tensor


def met_at(tensor: str) -> str:
    """The target's tensor that a product is called by.

    Example:
        >>> met_at("blocks.1.c_fc<-blocks.3.c_fc"), met_at("blocks.1.c_fc")
        ('blocks.1.c_fc', 'blocks.1.c_fc')
    """
    return tensor.partition(BESIDE)[0]


def pairs_beside(
    source: Iterable[Site], target: Sequence[Site], sites: Iterable[Site], signals: Collection[Signal]
) -> dict[SignalKey, tuple[Site, Site]]:
    """Returns the pairs of sites (source, target) that sums over blocks meet besides counterparts, by what they are called.

    Arguments:
        sites: Those of the target's that are served.

    Raises:
        MethodError: As `take_sites` does.
    """
    source = list(source)
    if not signals:
        return {}
    matched, taken = match_sites(source, target), take_sites(source, target, Depth.SUM)
    named = (
        (pair_key(ours, site, matched[site.name], signal), (ours, site))
        for site in sites
        for signal in signals
        for ours in taken[site.name].sites
    )
    return {key: pair for key, pair in named if is_beside(key[0])}


def partners(
    source: Sequence[Site],
    target: Sequence[Site],
    sites: Sequence[Site],
    signals: Collection[Signal],
    beside: Collection[Signal] = (),
) -> Partners:
    """Returns what the signals of some of the target's sites meet.

    Arguments:
        signals: Those that meet their counterparts.
        beside: Those that meet others besides.

    Raises:
        CalibrationError: If several sites of the target read one tensor, and their counterparts read several.
        MethodError: If a site has no counterpart.
    """
    matched = match_sites(source, target)
    found: Partners = {}
    for site in sites:
        for signal in signals:
            key, ours = signal_key(site, signal), signal_key(matched[site.name], signal)
            if found.setdefault(key, {}).setdefault(key, ours) != ours:
                raise CalibrationError(
                    f"{key[0]} is read by several sites of the target, whose counterparts in the source read "
                    f"{found[key][key][0]} and {ours[0]}: give both models the `example` that shows what reads what, or neither."
                )
    for key, (ours_site, theirs) in pairs_beside(source, target, sites, beside).items():
        found.setdefault(signal_key(theirs, key[1]), {})[key] = signal_key(ours_site, key[1])
    return found


def sites_met(met: Collection[SignalKey], sites: Iterable[Site]) -> list[Site]:
    """Those of some sites with a signal among these."""
    signals = {signal for _, signal in met}
    return [site for site in sites if any(signal_key(site, signal) in met for signal in signals)]
