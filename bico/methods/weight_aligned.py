"""Methods that rotate every site's update by maps found in the weights alone: no data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bico.errors import MethodError
from bico.linalg.procrustes import RANK_TOLERANCE
from bico.methods.evidence import Evidence, Needs
from bico.methods.protocol import Others, Pair, carry_sites, check_others
from bico.methods.settings import ADDED_LATER
from bico.models.depth import Depth
from bico.models.sites import Site
from bico.task_vector import StateDict


class Basis(NamedTuple):
    """Singular directions of a weight, the strongest first, one a column."""

    outputs: Float[Tensor, "out rank"]
    inputs: Float[Tensor, "in rank"]


@dataclass(frozen=True)
class WeightAligned(ABC):
    r"""Carries a site's update by what pairs the n-th singular direction of the source's weight with that of the target's:

    .. math:: \tau_B = Q_{out}^\top \tau_A Q_{in}, \qquad Q_{in} = V_A V_B^\top, \quad Q_{out} = U_A U_B^\top

    with as many directions as both weights have, or as subclasses keep; nothing is carried outside them.
    """

    others: Others = Others.LEAVE
    depth: Depth = field(default=Depth.ONE, metadata=ADDED_LATER)
    """What a target's block takes of a source that has another number of blocks."""

    @property
    @abstractmethod
    def most(self) -> int | None:
        """How many directions are kept at most; None for all."""

    @property
    def needs(self) -> Needs:
        return Needs()

    def check(self, pair: Pair) -> None:
        check_others(pair, self.others)
        for sites, state in ((pair.source_sites, pair.source_state), (pair.target_sites, pair.target_state)):
            for site in sites:
                if not (weight := site.weight.read(state)).any() or not weight.isfinite().all():
                    raise MethodError(
                        f"{site.name}: its weight is all zeros or not finite, and has no directions to align by; use a method "
                        "that aligns by samples (bico, theseus)."
                    )

    def transport(self, tau: Mapping[str, Tensor], pair: Pair, evidence: Evidence) -> StateDict:
        self.check(pair)

        def carry(ours: Site, site: Site) -> tuple[Tensor, Tensor | None]:
            source, target = self._bases(ours, site, pair)
            update = ours.weight.read(tau).double()
            weight = target.outputs @ (source.outputs.T @ update @ source.inputs) @ target.inputs.T
            if site.bias is None or ours.bias is None:  # a match has both or none
                return weight, None
            return weight, target.outputs @ (source.outputs.T @ ours.bias.read(tau).double())

        return carry_sites(tau, pair, self.others, carry, self.depth)

    def _bases(self, ours: Site, theirs: Site, pair: Pair) -> tuple[Basis, Basis]:
        """Of both weights, as many directions of each as there are of the other."""
        found = [
            singular_basis(s.weight.read(state))
            for s, state in ((ours, pair.source_state), (theirs, pair.target_state))
        ]
        rank = min(basis.inputs.shape[1] for basis in found)
        rank = rank if self.most is None else min(rank, self.most)
        source, target = (Basis(basis.outputs[:, :rank], basis.inputs[:, :rank]) for basis in found)
        return source, target


def singular_basis(weight: Float[Tensor, "out in"], rtol: float = RANK_TOLERANCE) -> Basis:
    r"""Returns the singular directions of a weight, in float64, with definite signs.

    A pair :math:`(u, v)` may be turned to :math:`(-u, -v)` without changing :math:`W = \sum \sigma u v^\top`. Here the entry of
    largest magnitude in each :math:`v` is positive, and :math:`u` follows. That is a convention, not knowledge: it is the same for
    two weights that differ in the order of their features, and tells nothing of two that differ by a rotation.

    Arguments:
        rtol: Directions with a singular value below `rtol` times the largest are left out.

    Example:
        >>> singular_basis(torch.tensor([[0.0, -2.0], [1.0, 0.0]])).inputs
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    u, values, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    kept = values > rtol * values[0]
    u, v = u[:, kept], vh[kept].T
    signs = v.gather(0, v.abs().argmax(0, keepdim=True)).sign()
    return Basis(u * signs, v * signs)
