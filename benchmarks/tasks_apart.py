"""Embedded tasks taken apart by their classes: several small tasks of different pictures, without a download."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Some classes of a task: those from a share of their list to another."""

    task: str
    begin: float = 0.0
    end: float = 1.0

    def classes(self, names: Sequence[str]) -> Sequence[str]:
        """Example:
        >>> Part("digits", 0.5, 1.0).classes("0123456789")
        '56789'
        """
        return names[round(self.begin * len(names)) : round(self.end * len(names))]


EIGHT: dict[str, Part] = {
    f"{task}-{n + 1}": Part(task, n / parts, (n + 1) / parts)
    for task, parts in (("digits", 2), ("segments", 3), ("lamps", 3))
    for n in range(parts)
}
"""Eight tasks: digits in two parts, segments and lamps in three."""
