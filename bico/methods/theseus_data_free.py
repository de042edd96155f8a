"""THESEUS without data: Gram matrices of the weights stand in for those of the activations."""

from typing import ClassVar

from bico.methods.protocol import Serves
from bico.methods.weight_aligned import WeightAligned


class TheseusDataFree(WeightAligned):
    r"""Aligns both sides of a site by the eigenvectors of its weight's Gram matrices.

    .. math:: W_A^\top W_A = U_A S_A U_A^\top, \qquad Q_{in} = \mathrm{polar}(U_A S_A^{1/2} S_B^{1/2} U_B^\top)

    and likewise :math:`Q_{out}` by :math:`W W^\top`. On the directions that both weights have, the polar factor is
    :math:`U_A U_B^\top`: the n-th strongest direction goes to the n-th strongest. Eigenvectors have arbitrary signs; those of the two
    sides are tied here, being singular vectors of one weight, and fixed by `singular_basis`. A target that is a permuted copy
    of the source is found by that; of two models that were trained apart little is to be expected.

    References:
        | THESEUS: task-vector transfer by aligning activation spaces (Rinaldi et al.), its data-free form in
        | https://github.com/apanariello4/merge-and-rebase
    """

    name: ClassVar[str] = "theseus-data-free"
    label: ClassVar[str] = "THESEUS (no data)"
    colour: ClassVar[str] = "#60a5fa"
    reference: ClassVar[str] = "THESEUS by Gram matrices of the weights (merge-and-rebase)"
    serves: ClassVar[Serves] = Serves.ANY
    carries_expert: ClassVar[bool] = True
    trained: ClassVar[str] = ""

    @property
    def most(self) -> None:
        return None
