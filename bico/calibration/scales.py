"""How large what sites read and give is, in each of the two models: what orthogonal maps leave out."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from torch import Tensor

from bico.calibration.covariances import stream_signals, until_snapshots
from bico.calibration.meeting import real_rows
from bico.calibration.signals import Signal, SignalKey
from bico.errors import CalibrationError
from bico.models.inputs import Inputs
from bico.models.protocol import Calibratable


class Side(StrEnum):
    """Which of the two models."""

    SOURCE = "source"
    TARGET = "target"


class Scale(NamedTuple):
    """The size of the rows of one signal; adds up over samples."""

    squares: float
    """Sum of the squares of all entries."""
    rows: int

    @property
    def norm(self) -> float:
        """Root mean square of the rows' norms."""
        return math.sqrt(self.squares / self.rows) if self.rows else 0.0

    def plus(self, other: "Scale") -> "Scale":
        return Scale(self.squares + other.squares, self.rows + other.rows)


Scales = dict[SignalKey, Scale]
"""Of the inputs and outputs of all sites of one model."""


def signal_scales(
    model: Calibratable,
    batches: Iterable[tuple[Inputs, Tensor]],
    head: Tensor | None,
    snapshots: Sequence[int],
    on_batch: Callable[[int], None] = lambda seen: None,
) -> Iterator[tuple[int, Scales]]:
    """Streams the scales of what a model's sites read and give, at its present weights: one forward pass.

    They do not depend on the batch size or the order; padding is left out. They are one model's alone, whatever the expert:
    every pair that the model is part of can use them.

    Arguments:
        batches: Prepared inputs and targets of the loss in the order of the calibration set, cut at the snapshots
            (`split_at`).
        head: What the model's loss is taken in, which comes with a forward pass; the scales do not depend on it.
        snapshots: Sample counts at which the scales so far are yielded.

    Yields:
        Pairs of a sample count and the scales up to there.

    Raises:
        CalibrationError: If a site was never reached, a value is not finite, or the batches end before the last snapshot
            or step over one.
    """
    sums: Scales = {}
    for (inputs, labels), seen, due in until_snapshots(batches, lambda batch: len(batch[1]), snapshots):
        mask = model.mask(inputs)

        def add(key: SignalKey, signal: Tensor, mask: Tensor | None = mask) -> None:
            rows = real_rows(signal, mask)
            sums[key] = sums.get(key, Scale(0.0, 0)).plus(Scale(float(rows.double().square().sum()), len(rows)))

        stream_signals(model, inputs, labels, head, model.sites, [Signal.INPUT, Signal.OUTPUT], add)
        on_batch(seen)
        if due:
            for (tensor, signal), scale in sums.items():
                if not math.isfinite(scale.squares):
                    raise CalibrationError(
                        f"The {signal} of {tensor} in {model.name} is not finite: its weights or the calibration inputs are "
                        "broken."
                    )
            yield seen, dict(sums)
