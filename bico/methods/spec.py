"""How a run spells what is done to the target: `bico`, `gradfix:mask=force`, `bico+head:targets=labels`, `none+head`.

A text is taken apart once, where it comes in; from there on tables, plots, files and advice look at the parts. Parsing
knows no names, so that rows of references and of methods that are not installed can be read as well; names and settings
are checked where a spec is built (`bico.methods.variant`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NONE = "none"
"""Stands for no transport in front of a last step: its control."""

_PLUS = re.compile(r"\+(?=[A-Za-z])")  # not the plus of 1e+3


@dataclass(frozen=True)
class Part:
    """A name with the settings that were given."""

    name: str
    given: tuple[str, ...] = ()
    """As written: `key=value`."""

    @classmethod
    def parse(cls, text: str) -> "Part":
        name, *given = text.split(":")
        return cls(name, tuple(given))

    def __str__(self) -> str:
        return ":".join([self.name, *self.given])

    @property
    def settings(self) -> Mapping[str, str]:
        """Settings by name, as texts."""
        return dict(pair.split("=", 1) for pair in self.given if "=" in pair)


@dataclass(frozen=True)
class Spec:
    """A method, or none, with its settings, and the last steps behind it.

    Example:
        >>> spec = Spec.parse("bico:completion=svd+head:targets=labels")
        >>> spec.name, spec.steps[0].settings["targets"], str(spec.control)
        ('bico', 'labels', 'none+head:targets=labels')
    """

    first: Part
    steps: tuple[Part, ...] = field(default=())

    @classmethod
    def parse(cls, text: "str | Spec") -> "Spec":
        """Takes a spelling apart; a spec passes through."""
        if isinstance(text, Spec):
            return text
        first, *steps = _PLUS.split(text.strip())
        return cls(Part.parse(first), tuple(map(Part.parse, steps)))

    def __str__(self) -> str:
        return "+".join(map(str, [self.first, *self.steps]))

    @property
    def name(self) -> str:
        """Of the method, or of the reference whose row it heads."""
        return self.first.name

    @property
    def carries(self) -> bool:
        """Whether anything stands in front of the last steps."""
        return self.name != NONE

    @property
    def control(self) -> "Spec | None":
        """The same last steps without transport; None if there are none, or nothing is in front of them."""
        return Spec(Part(NONE), self.steps) if self.steps and self.carries else None

    @property
    def filename(self) -> str:
        """For names of folders: no colon, which some file systems do not have."""
        return str(self).replace(":", "-")
