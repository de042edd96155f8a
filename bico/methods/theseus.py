"""THESEUS: both sides aligned by activations; needs no labels."""

from typing import ClassVar

from bico.calibration.signals import Signal
from bico.methods.aligned import Aligned
from bico.methods.protocol import Serves


class Theseus(Aligned):
    """Activation Procrustes on both sides of every site (Rinaldi et al., THESEUS).

    The paper's code also rotates layer norms and has `proj` read all tokens; here parameters that are no linear map
    follow `others`, and `proj` reads what it reads in the model: the pooled token.
    """

    name: ClassVar[str] = "theseus"
    label: ClassVar[str] = "THESEUS"
    colour: ClassVar[str] = "#1d4ed8"
    reference: ClassVar[str] = "THESEUS: task-vector transfer by aligning activation spaces"
    serves: ClassVar[Serves] = Serves.ANY
    input_side: ClassVar[Signal | None] = Signal.INPUT
    output_side: ClassVar[Signal | None] = Signal.OUTPUT
