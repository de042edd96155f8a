r"""How strongly a carried update is applied, from the calibration rows alone: no labels, nothing chosen.

Orthogonal maps carry directions and throw scales away: of two models, one may read activations five times as large, or give
outputs five times as small. What an update does at a site is the share by which it changes the output, :math:`\|\tau x\| /
\|y\|`. A map leaves :math:`\|\tau\|` as it is, so the share changes with the size of what the two sites read and give, and
*effect matching* makes up for that:

.. math:: g_W = \frac{\|x_A\| / \|y_A\|}{\|x_B\| / \|y_B\|}, \qquad g_\beta = \frac{\|y_B\|}{\|y_A\|}

with norms over all calibration rows of each model (`bico.calibration.scales`), :math:`g_W` for a weight's update and
:math:`g_\beta` for a bias's, which moves the output whatever is read. What a map loses outside its span is not made up for: a
model's own update has strength one at every rank.

A target's block that stands for several source blocks does the work of all of them, and the share is that of their outputs
together (`output_stood_for`). Their sizes add up as squares, as those of outputs that have nothing to do with each other do:
what each block of a residual stream adds is nearly orthogonal to what the others add. A block that shares one source block with
others gets its share of the update, and of the output that the update is measured against: the same share of its own.
"""

import math
from enum import StrEnum
from typing import NamedTuple

from bico.calibration.scales import Scale, Side
from bico.calibration.signals import Signal, signal_key
from bico.methods.evidence import Evidence
from bico.models.depth import TakenSites
from bico.models.sites import Site


class Strength(StrEnum):
    """By how much each site's carried update is multiplied before α."""

    FIXED = "fixed"
    """By one, as published."""
    EFFECT = "effect"
    """Effect matching: by what gives it the share of the target's output that it had of the source's."""


class Sizes(NamedTuple):
    """What a site of one model reads and gives, on the calibration rows."""

    reads: Scale
    gives: Scale


def sizes_of(site: Site, side: Side, evidence: Evidence) -> Sizes:
    """Returns the sizes of one site of one of the models, as they were gathered.

    Raises:
        MethodError: If they were not.
    """
    return Sizes(*(evidence.scale(side, signal_key(site, signal)) for signal in (Signal.INPUT, Signal.OUTPUT)))


def output_stood_for(taken: TakenSites, evidence: Evidence) -> float:
    r"""Returns the size of what the source gives at all the sites that one of the target stands for,
    :math:`share \sqrt{\sum \|y\|^2}`; that of one site where it stands for one.
    """
    norms = (evidence.scale(Side.SOURCE, signal_key(site, Signal.OUTPUT)).norm for site in taken.sites)
    return taken.share * math.hypot(*norms)


def effect_strengths(ours: Sizes, theirs: Sizes, stood_for: float | None = None) -> tuple[float, float]:
    """Returns the factors of a site's weight update and of its bias update.

    A site that reads or gives nothing but zeros, in either model, has strength one: no factor could give it an effect.

    Arguments:
        stood_for: The size of the source's output that the target's stands for, if that is not the site's alone.

    Example:
        >>> effect_strengths(Sizes(Scale(4, 1), Scale(1, 1)), Sizes(Scale(1, 1), Scale(9, 1)))
        (6.0, 3.0)
    """
    gives = ours.gives.norm if stood_for is None else stood_for
    if not all((ours.reads.norm, gives, theirs.reads.norm, theirs.gives.norm)):
        return 1.0, 1.0
    bias = theirs.gives.norm / gives
    return ours.reads.norm / theirs.reads.norm * bias, bias
