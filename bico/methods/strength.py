r"""How strongly a carried update is applied, from the calibration rows alone: no labels, nothing chosen.

Orthogonal maps carry directions and throw scales away: of two models, one may read activations five times as large, or give
outputs five times as small. What an update does at a site is the share by which it changes the output, :math:`\|\tau x\| /
\|y\|`. A map leaves :math:`\|\tau\|` as it is, so the share changes with the size of what the two sites read and give, and
*effect matching* makes up for that:

.. math:: g_W = \frac{\|x_A\| / \|y_A\|}{\|x_B\| / \|y_B\|}, \qquad g_\beta = \frac{\|y_B\|}{\|y_A\|}

with norms over all calibration rows of each model (`bico.calibration.scales`), :math:`g_W` for a weight's update and
:math:`g_\beta` for a bias's, which moves the output whatever is read. What a map loses outside its span is not made up for: a
model's own update has strength one at every rank.
"""

from enum import StrEnum
from typing import NamedTuple

from bico.calibration.scales import Scale, Side
from bico.calibration.signals import Signal, signal_key
from bico.methods.evidence import Evidence
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


def effect_strengths(ours: Sizes, theirs: Sizes) -> tuple[float, float]:
    """Returns the factors of a site's weight update and of its bias update.

    A site that reads or gives nothing but zeros, in either model, has strength one: no factor could give it an effect.

    Example:
        >>> effect_strengths(Sizes(Scale(4, 1), Scale(1, 1)), Sizes(Scale(1, 1), Scale(9, 1)))
        (6.0, 3.0)
    """
    if not all(scale.norm for scale in (*ours, *theirs)):
        return 1.0, 1.0
    bias = theirs.gives.norm / ours.gives.norm
    return ours.reads.norm / theirs.reads.norm * bias, bias
