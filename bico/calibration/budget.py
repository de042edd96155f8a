"""How many calibration samples: asked for, there, and without labels. One type, from the command line to the tables."""

from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Budget:
    """What one cell of a sweep may learn from; two are equal if the same was asked for.

    Example:
        >>> Budget(20) < Budget(20, unlabelled=500), str(Budget(20, unlabelled=500))
        (True, 'N=20/U=500')
    """

    asked: int = 0
    """Labelled samples as asked for: N, or K of each class with `Sampling.PER_CLASS`; 0 for none."""
    unlabelled: int = 0
    """Inputs that serve without labels, beside them."""
    size: int | None = field(default=None, compare=False)
    """Labelled samples that there are; None where nobody has counted, as in a table that was read back."""

    def __bool__(self) -> bool:
        return bool(self.asked or self.unlabelled)

    def __str__(self) -> str:
        return f"N={self.asked}" + f"/U={self.unlabelled}" * bool(self.unlabelled)

    @property
    def samples(self) -> int:
        """Samples in all, of known size."""
        return (self.size or 0) + self.unlabelled


NOTHING = Budget()
"""No calibration samples at all."""
