"""What a line search saw: the loss at every strength that it tried."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StrengthCurve:
    """Strengths of a task vector, and how well each does on the labelled samples."""

    strengths: tuple[float, ...]
    """Ascending; 0 is the untouched target."""
    losses: tuple[float, ...]
    """Mean cross-entropy in nats at each."""
    chosen: float
    """One of the strengths."""

    @property
    def gain(self) -> float:
        """By how many nats the chosen strength is better than the one that the vector came with; NaN if that is not among
        them.

        Example:
            >>> StrengthCurve((0.0, 1.0, 2.0), (1.5, 1.0, 0.75), chosen=2.0).gain
            0.25
        """
        at = dict(zip(self.strengths, self.losses, strict=True))
        return at.get(1.0, float("nan")) - at[self.chosen]
