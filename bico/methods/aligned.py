"""Methods that rotate every site's update into the target's coordinates: a method is a pair of signals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bico.errors import ShapeError
from bico.methods.protocol import Maps, Others, Pair, carry_others
from bico.signals import Signal, signal_key
from bico.sites import assemble
from bico.task_vector import State


@dataclass(frozen=True)
class Aligned:
    r"""Carries a site's update by one map on each side (BiCo, eq. 8):

    .. math:: \tau_B = Q_{out}^\top \tau_A Q_{in}, \qquad \beta_B = Q_{out}^\top \beta_A

    with :math:`Q_{in}` of shape (in_A, in_B), :math:`Q_{out}` of shape (out_A, out_B) and biases :math:`\beta`.
    Subclasses say by which signal each side is aligned.
    """

    others: Others = Others.LEAVE

    input_side: ClassVar[Signal]
    output_side: ClassVar[Signal]

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({self.input_side, self.output_side})

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, maps: Maps) -> State:
        matched = pair.matched
        weights, biases = {}, {}
        for site in pair.target_sites:
            ours = matched[site.name]
            q_in = maps(signal_key(site, self.input_side))
            q_out = maps(signal_key(site, self.output_side))
            update = ours.weight.read(tau)
            if q_out.shape != (ours.shape[0], site.shape[0]) or q_in.shape != (ours.shape[1], site.shape[1]):
                raise ShapeError(
                    f"{site.name}: maps of shape {tuple(q_out.shape)} and {tuple(q_in.shape)} cannot carry an update "
                    f"{tuple(update.shape)} to {site.shape}; they belong to another pair of models."
                )
            weights[site.name] = q_out.T @ update @ q_in
            if site.bias is not None:
                biases[site.name] = q_out.T @ ours.bias.read(tau)
        return assemble(weights, biases, pair.target_sites, pair.target_state) | carry_others(tau, pair, self.others)
