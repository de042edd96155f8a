"""Matching the classes of a copy to those of a published data set: by name, never by place alone."""

import re
from collections.abc import Sequence

from bico.data.labels import Labels, shortened
from bico.errors import DataError

PUBLISHED: dict[str, tuple[tuple[str, ...], ...]] = {
    # Helber et al. (2019), as the folders of the original archive are called.
    "eurosat": (
        (
            "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop",
            "Residential", "River", "SeaLake",
        ),
    ),
}  # fmt: skip
"""Other lists under which a benchmark's classes are published, in the benchmark's order."""
_EMPTY = {"a", "an", "the", "or", "and", "of", "with"}


def in_published_order(labels: Labels, names: Sequence[str], lists: Sequence[Sequence[str]], where: str) -> Labels:
    """Returns the classes of a copy as the benchmark numbers and names them.

    Where the copy has no order of its own (strings, folders) it is put into the benchmark's.

    Arguments:
        names: The benchmark's class names.
        lists: What else they are called, in the same order.

    Raises:
        DataError: If there are more or fewer, they are in another order, or a name cannot be recognised.

    Example:
        >>> import torch
        >>> labels = Labels(("SeaLake", "River"), {"train": torch.tensor([0, 1])}, ordered=False)
        >>> in_published_order(labels, ["river", "lake or sea"], [], "here").numbers["train"]
        tensor([1, 0])
    """
    found = labels.names
    if len(found) != len(names):
        raise DataError(
            f"{where} has {len(found)} classes, the benchmark's {len(names)}: is it another data set? Without 'hub:' it is "
            "taken as it is."
        )
    places = _places(found, names, lists)
    for number, (name, place) in enumerate(zip(found, places, strict=True)):
        if place is None:
            raise DataError(
                f"{where}: class {number} is {name!r} there and {names[number]!r} here, which may be another one: say which is "
                f"which by class_names in its task.yaml, as `{name}: {names[number]}`, or take it without 'hub:'."
            )
        if labels.ordered and place != number:
            raise DataError(
                f"{where} numbers its classes in another order than the benchmark: {number} is {name!r} there and "
                f"{names[number]!r} here. Sort its labels, or take it without 'hub:'."
            )
    if len(set(places)) < len(names):
        raise DataError(f"{where}: two of its classes, {shortened(found)}, are one of the benchmark's.")
    return labels.in_order([places.index(number) for number in range(len(names))], names)


def _places(found: Sequence[str], names: Sequence[str], lists: Sequence[Sequence[str]]) -> list[int | None]:
    """For each class of a copy its place in the benchmark; None where its name does not tell."""
    for known in (names, *lists):
        spelt = [_spelt(name) for name in known]
        if {_spelt(name) for name in found} == set(spelt):
            return [spelt.index(_spelt(name)) for name in found]
    if all(name == str(number) for number, name in enumerate(found)):
        return list(range(len(found)))  # numbers in the published order
    words = [_words(name).union(*(_words(known[place]) for known in lists)) for place, name in enumerate(names)]
    return [_nearest(_words(name), words) for name in found]


def _nearest(words: set[str], known: Sequence[set[str]]) -> int | None:
    """The class that shares the most words; None if there is none, or several."""
    scores = [len(words & other) for other in known]
    best = max(scores)
    return scores.index(best) if best and scores.count(best) == 1 else None


def _spelt(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _words(name: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)", " ", name)
    return set(re.findall(r"[a-z0-9]+", spaced.lower())) - _EMPTY
