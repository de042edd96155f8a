"""BiCo with one idea taken out: which of its two sides does the work, and by which signal (BiCo, table 5)."""

from typing import ClassVar

from bico.calibration.signals import Signal
from bico.methods.aligned import Aligned
from bico.methods.protocol import Serves


class InputOnly(Aligned):
    """Aligns inputs by activations and leaves outputs as they are."""

    name: ClassVar[str] = "input-only"
    label: ClassVar[str] = "input-only"
    colour: ClassVar[str] = "#0891b2"
    reference: ClassVar[str] = "BiCo, table 5"
    serves: ClassVar[Serves] = Serves.EQUAL_OUTPUTS
    input_side: ClassVar[Signal | None] = Signal.INPUT
    output_side: ClassVar[Signal | None] = None


class OutputOnly(Aligned):
    """Aligns outputs by loss gradients and leaves inputs as they are."""

    name: ClassVar[str] = "output-only"
    label: ClassVar[str] = "output-only"
    colour: ClassVar[str] = "#65a30d"
    reference: ClassVar[str] = "BiCo, table 5"
    serves: ClassVar[Serves] = Serves.EQUAL_INPUTS
    input_side: ClassVar[Signal | None] = None
    output_side: ClassVar[Signal | None] = Signal.OUTPUT_GRAD


class GradientOnly(Aligned):
    """Aligns both sides by loss gradients: those of a site's inputs, and of its outputs."""

    name: ClassVar[str] = "gradient-only"
    label: ClassVar[str] = "gradient-only"
    colour: ClassVar[str] = "#d97706"
    reference: ClassVar[str] = "BiCo, table 5"
    serves: ClassVar[Serves] = Serves.ANY
    input_side: ClassVar[Signal | None] = Signal.INPUT_GRAD
    output_side: ClassVar[Signal | None] = Signal.OUTPUT_GRAD
