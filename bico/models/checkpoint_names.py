"""Whose names a checkpoint's tensors have: found by what a model's parameters are called, never by a guess.

A naming says for each parameter from which tensors it comes. A checkpoint has a naming behind a prefix (`module.`,
`model.visual.`, any other) if every tensor that the naming asks for is there with this prefix. If it has one so, or several
that give the same numbers, it is read; else it is refused.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from bico.errors import CheckpointError
from bico.models.checkpoints import Checkpoint

_SOME = 0.1
"""A checkpoint that has less of a naming's names than this is of something else."""


def _alone(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Piece:
    """What one parameter is made of."""

    names: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor] = _alone


@dataclass(frozen=True)
class Naming:
    """How somebody calls the parameters of a model."""

    whose: str
    """In a message: "a bare image tower", "transformers' CLIP"."""
    pieces: Mapping[str, Piece]
    """By the model's own name; also of parameters that are not asked for."""
    optional: frozenset[str] = frozenset()
    """Parameters that such a checkpoint may lack, because it never changes them."""

    def required(self, wanted: Iterable[str]) -> set[str]:
        """The names in the checkpoint without which it does not have this naming."""
        return {name for ours in wanted if ours not in self.optional for name in self.pieces[ours].names}


@dataclass(frozen=True)
class Reading:
    """A checkpoint seen through a naming."""

    checkpoint: Checkpoint
    naming: Naming
    prefix: str

    def has(self, ours: str) -> bool:
        piece = self.naming.pieces.get(ours)
        return piece is not None and all(self.prefix + name in self.checkpoint.tensors for name in piece.names)

    def parameter(self, ours: str) -> Tensor:
        """A parameter by the model's own name, in the dtype that it was stored in.

        Raises:
            CheckpointError: If its parts cannot be put together.
        """
        piece = self.naming.pieces[ours]
        try:
            return piece.join([self.checkpoint.tensors[self.prefix + name] for name in piece.names])
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.checkpoint.place}: {', '.join(piece.names)} cannot be put together as {ours}: it is a checkpoint of "
                "another architecture."
            ) from error

    @property
    def used(self) -> set[str]:
        """The checkpoint's names that the naming knows."""
        return {self.prefix + name for piece in self.naming.pieces.values() for name in piece.names}

    @property
    def notes(self) -> tuple[str, ...]:
        """One line if names had to be changed; none if they are the model's own."""
        said = [f"read as {self.naming.whose}"] * bool(self.naming.whose)
        said += [f"the prefix '{self.prefix}' was taken off"] * bool(self.prefix)
        return (f"{self.checkpoint.place}: {', '.join(said)}.",) if said else ()


def own_namings(parameters: Iterable[str], wanted: Iterable[str]) -> tuple[Naming, ...]:
    """Returns a model's own naming, and that of the part that is wanted alone, if it is a part with a name.

    Arguments:
        parameters: Names of all of the model's parameters.
        wanted: Those that are asked for, such as those of an image tower.
    """
    wanted = list(wanted)
    own = Naming("", {name: Piece((name,)) for name in dict.fromkeys([*parameters, *wanted])})
    levels = takewhile(
        lambda level: len(set(level)) == 1, zip(*(name.split(".")[:-1] for name in wanted), strict=False)
    )
    before = "".join(f"{level[0]}." for level in levels)
    if not before:
        return (own,)
    alone = {name: Piece((name.removeprefix(before),)) for name in wanted}
    return own, Naming(f"the source's '{before.rstrip('.')}' alone", alone)


def read_as(checkpoint: Checkpoint, namings: Sequence[Naming], wanted: Iterable[str], what: str) -> Reading:
    """Finds the naming and the prefix that a checkpoint has; arguments are those of `find_reading`.

    Raises:
        CheckpointError: If it has none: names what is missing of the one that comes nearest. Or as `find_reading` does.
    """
    wanted = list(wanted)
    found = find_reading(checkpoint, namings, wanted, what)
    if found is None:
        raise CheckpointError(_missing(checkpoint, namings, wanted, what))
    return found


def find_reading(checkpoint: Checkpoint, namings: Sequence[Naming], wanted: Iterable[str], what: str) -> Reading | None:
    """Finds the naming and the prefix that a checkpoint has; None if it has none of them.

    Arguments:
        namings: Those to try.
        wanted: The model's own names of the parameters that are asked for.
        what: How messages call the checkpoint.

    Raises:
        CheckpointError: If it has several that do not give the same numbers.
    """
    wanted = list(wanted)
    found: dict[frozenset[str], Reading] = {}  # two namings that ask for the same tensors are one way to read them
    for naming in namings:
        required = naming.required(wanted)
        for prefix, count in _prefixes(required, checkpoint.tensors).items():
            if count == len(required):
                names = frozenset(prefix + name for name in required)
                found.setdefault(names, Reading(checkpoint, naming, prefix))
    if not found:
        return None
    first, *others = found.values()
    for other in others:
        if not _same(first, other, wanted):
            ways = " and ".join(_way(reading) for reading in (first, other))
            raise CheckpointError(
                f"{what} holds two sets of weights that fit, {ways}: save the one that you mean in a file of its own."
            )
    return first


def _prefixes(required: set[str], names: Iterable[str]) -> Counter[str]:
    """How many of the required names stand behind each prefix."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in required:
                counts["".join(f"{part}." for part in parts[:place])] += 1
    return counts


def _same(one: Reading, other: Reading, wanted: Iterable[str]) -> bool:
    def equal(ours: str) -> bool:
        if one.has(ours) != other.has(ours):
            return False
        if not one.has(ours):
            return True
        a, b = one.parameter(ours), other.parameter(ours)
        return a is b or (a.shape == b.shape and torch.equal(a, b))

    return all(equal(ours) for ours in wanted)


def _way(reading: Reading) -> str:
    way = f"behind '{reading.prefix}'" if reading.prefix else "without a prefix"
    return f"{way} ({reading.naming.whose})" if reading.naming.whose else way


def _missing(checkpoint: Checkpoint, namings: Sequence[Naming], wanted: Sequence[str], what: str) -> str:
    """What a checkpoint lacks of the naming and prefix that it has most of."""
    tried = [
        (count / len(required), prefix, naming, required)
        for naming in namings
        for required in [naming.required(wanted)]
        for prefix, count in _prefixes(required, checkpoint.tensors).items()
    ]
    share, prefix, naming, required = max(tried, key=lambda one: one[0], default=(0.0, "", namings[0], set(wanted)))
    if share < _SOME:
        shown = ", ".join(list(checkpoint.tensors)[:3])
        return (
            f"{what} has no parameter {wanted[0]!r}, under no prefix: its {len(checkpoint.tensors)} tensors are {shown}, …; "
            "is it a checkpoint of another architecture?"
        )
    lacks = sorted(prefix + name for name in required if prefix + name not in checkpoint.tensors)
    whose = f" (read as {naming.whose})" if naming.whose else ""
    return (
        f"{what} has no parameter {lacks[0]!r}{whose}, {len(lacks)} of {len(required)} are absent: is it a checkpoint of "
        "another architecture, or cut?"
    )
