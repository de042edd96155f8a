"""BiCo: inputs aligned by activations, outputs by gradients of the task loss."""

from typing import ClassVar

from bico.calibration.signals import Signal
from bico.methods.aligned import Aligned
from bico.methods.protocol import Serves


class BiCo(Aligned):
    """Bilinear coordinate alignment (BiCo, section 4, eq. 5-8).

    Gradient descent makes a task vector as a sum of outer products, output gradient by input. Moving it to another
    model means moving both factors: the inputs' coordinates and the output gradients' coordinates.
    """

    name: ClassVar[str] = "bico"
    label: ClassVar[str] = "BiCo"
    colour: ClassVar[str] = "#c2410c"
    reference: ClassVar[str] = "Bilinear Coordinate Alignment for Training-Free Task-Vector Transfer"
    serves: ClassVar[Serves] = Serves.ANY
    input_side: ClassVar[Signal | None] = Signal.INPUT
    output_side: ClassVar[Signal | None] = Signal.OUTPUT_GRAD
