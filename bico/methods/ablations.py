"""BiCo with one idea taken out: which of its two sides does the work, and by which signal (BiCo, table 5)."""

from typing import ClassVar

from bico.calibration.signals import Signal
from bico.methods.aligned import Aligned


class InputOnly(Aligned):
    """Aligns inputs by activations and leaves outputs as they are."""

    name: ClassVar[str] = "input-only"
    reference: ClassVar[str] = "BiCo, table 5"
    input_side: ClassVar[Signal | None] = Signal.INPUT
    output_side: ClassVar[Signal | None] = None


class OutputOnly(Aligned):
    """Aligns outputs by loss gradients and leaves inputs as they are."""

    name: ClassVar[str] = "output-only"
    reference: ClassVar[str] = "BiCo, table 5"
    input_side: ClassVar[Signal | None] = None
    output_side: ClassVar[Signal | None] = Signal.OUTPUT_GRAD


class GradientOnly(Aligned):
    """Aligns both sides by loss gradients: those of a site's inputs, and of its outputs."""

    name: ClassVar[str] = "gradient-only"
    reference: ClassVar[str] = "BiCo, table 5"
    input_side: ClassVar[Signal | None] = Signal.INPUT_GRAD
    output_side: ClassVar[Signal | None] = Signal.OUTPUT_GRAD
