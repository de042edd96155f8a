"""From any column of classes to class names and their numbers, the same in both splits.

Both splits are matched by name: a test split that numbers its classes by itself, or lacks some, is read rightly.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bico.data.reading import Reading
from bico.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

UNLABELLED = -1
Value = str | int | None
"""A class by name, by number, or none."""


@dataclass(frozen=True)
class Labels:
    """The classes of a table."""

    names: tuple[str, ...]
    numbers: dict[str, Tensor]
    """Class indices (rows,) by split, int64; -1 where a row has none."""
    ordered: bool
    """Whether the table says the order of its classes; else they are sorted."""
    renumbered: bool = False
    """Whether the test split had numbers of its own."""

    def in_order(self, order: Sequence[int], names: Sequence[str]) -> "Labels":
        """The same classes in another order and under other names.

        Arguments:
            order: For each new place, the old one.
        """
        place = torch.full((len(self.names) + 1,), UNLABELLED)
        place[torch.tensor(order)] = torch.arange(len(order))
        numbers = {split: place[old] for split, old in self.numbers.items()}  # the last place is that of -1
        return Labels(tuple(names), numbers, self.ordered, self.renumbered)


def read_labels(parts: Mapping[str, "Dataset"], column: str, where: str, naming: str | None = None) -> Labels:
    """Reads the classes of all splits; what the first one, `train`, has is what there is.

    Arguments:
        where: How messages call the table.
        naming: A column of text that names the classes, where `column` only numbers them.

    Raises:
        DataError: If values are no classes, lie outside of them, are others in test than in train, or are all missing.
    """
    values = {split: _values(part, column, f"{where}: {split}") for split, part in parts.items()}
    kinds = {split: {type(value) for value in found} - {type(None)} for split, found in values.items()}
    for split, found in values.items():
        if not found:
            raise DataError(f"{where}: the {split} split has no rows.")
        if not kinds[split]:
            raise DataError(
                f"{where}: none of the {len(found)} rows of the {split} split has a label in `{column}`: name a split that has "
                "them by `test_split` in task.yaml, or another column by --label-column."
            )
    if len(set.union(*kinds.values())) > 1:
        raise DataError(f"{where}: `{column}` holds names in some rows and numbers in others: write all alike.")
    names, ordered = _order(parts, column, values)
    place = {name: number for number, name in enumerate(names)}
    numbers = {}
    for split, found in values.items():
        strange = {
            value: row for row, value in reversed(list(enumerate(found))) if value is not None and value not in place
        }
        if strange:
            value = min(strange, key=lambda one: strange[one])
            raise DataError(
                f"{where}: row {strange[value]} of the {split} split has the label {value!r}, and train has the classes "
                f"{shortened(names)}: mend it, or leave such rows out."
            )
        numbers[split] = torch.tensor([UNLABELLED if value is None else place[value] for value in found])
    labels = Labels(tuple(str(name) for name in names), numbers, ordered, _renumbered(parts, column))
    if naming is not None and set.union(*kinds.values()) == {int}:
        return _named_by(labels, parts, naming)
    return labels


def _order(
    parts: Mapping[str, "Dataset"], column: str, values: Mapping[str, Sequence[Value]]
) -> tuple[list[Any], bool]:
    """The classes in order, and whether the table says it."""
    first = next(iter(parts))
    declared = getattr(parts[first].features[column], "names", None)
    if declared is not None:
        return list(declared), True
    present = sorted({value for value in values[first] if value is not None})
    return present, isinstance(present[0], int)


def _renumbered(parts: Mapping[str, "Dataset"], column: str) -> bool:
    declared = [getattr(part.features[column], "names", None) for part in parts.values()]
    return any(names != declared[0] for names in declared)


def _values(part: "Dataset", column: str, where: str) -> list[Value]:
    """The classes of a split's rows, None where there is none."""
    feature, cells = part.features[column], list(part[column][:])
    declared = getattr(feature, "names", None)
    if declared is None:
        return _undeclared(cells, column, where)
    values: list[Value] = []
    for row, cell in enumerate(cells):
        if cell is None or cell == UNLABELLED:
            values.append(None)
        elif 0 <= cell < len(declared):
            values.append(declared[cell])
        else:
            raise DataError(
                f"{where}: row {row} has the label {cell}, and `{column}` has {len(declared)} classes, 0 to {len(declared) - 1}: "
                "mend it, or leave such rows out."
            )
    return values


def _undeclared(cells: Sequence[Any], column: str, where: str) -> list[Value]:
    """Classes without a list of names: texts, whole numbers, truth values."""
    values: list[Value] = []
    for row, cell in enumerate(cells):
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            values.append(None)
        elif isinstance(cell, bool):
            values.append(str(cell).lower())
        elif isinstance(cell, int) or (isinstance(cell, float) and cell.is_integer()):
            values.append(int(cell))
        elif isinstance(cell, str):
            values.append(cell.strip() or None)
        else:
            kind = "a number between classes" if isinstance(cell, float) else f"a {type(cell).__name__}"
            raise DataError(
                f"{where}: row {row} has {str(cell)[:40]!r} in `{column}`, {kind}: a class is a name or a whole number, one per "
                "row; say which column holds it by --label-column."
            )
    written = [value for value in values if isinstance(value, str)]
    if written and all(_is_whole(value.removesuffix(".0")) for value in written):  # as CSV writes numbers
        values = [int(value.removesuffix(".0")) if isinstance(value, str) else value for value in values]
    for row, value in enumerate(values):
        if isinstance(value, int) and value < UNLABELLED:
            raise DataError(
                f"{where}: row {row} has the label {value}: a class is 0 or more, and -1 where there is none."
            )
    return [None if value == UNLABELLED else value for value in values]


def _is_whole(text: str) -> bool:
    return text == "0" or (text.removeprefix("-").isdecimal() and not text.removeprefix("-").startswith("0"))


def _named_by(labels: Labels, parts: Mapping[str, "Dataset"], naming: str) -> Labels:
    """Names from a second column, if it says the same name in every row of a class and another one for each class."""
    found: dict[int, set[Any]] = {}
    for split, part in parts.items():
        for number, name in zip(labels.numbers[split].tolist(), part[naming][:], strict=True):
            if number != UNLABELLED:
                found.setdefault(number, set()).add(name)
    names = [next(iter(found[n])) if len(found.get(n, ())) == 1 else None for n in range(len(labels.names))]
    if None in names or len(set(names)) < len(names):
        return labels
    return labels.in_order(range(len(names)), [str(name).strip() for name in names])


def renamed(labels: Labels, reading: Reading, where: str) -> Labels:
    """Returns the classes as `class_names` calls them.

    Raises:
        DataError: If a name is given for a class that is not there, for too few or too many, or by place where the table
            says no order.
    """
    found = labels.names
    if pairs := reading.renamed:
        if strange := [name for name in pairs if name not in found]:
            raise DataError(f"{where}: class_names renames {strange[0]!r}; the classes are {shortened(found)}.")
        return labels.in_order(range(len(found)), [pairs.get(name, name) for name in found])
    if not (listed := reading.listed):
        return labels
    if set(listed) == set(found) and len(listed) == len(found):
        return labels.in_order([found.index(name) for name in listed], listed)
    numbered = all(_is_whole(name) for name in found)
    if numbered and all(0 <= int(name) < len(listed) for name in found):  # some may have no rows
        places = {int(name): place for place, name in enumerate(found)}
        numbers = {split: _moved(old, sorted(places)) for split, old in labels.numbers.items()}
        return Labels(listed, numbers, True, labels.renumbered)
    moved = [n for n in listed if n in found and len(listed) == len(found) and found.index(n) != listed.index(n)]
    if not labels.ordered or len(listed) != len(found) or moved:
        raise DataError(
            f"{where}: class_names lists {len(listed)} names by place for the {len(found)} classes {shortened(found)}: say which "
            "is which, as `class_names: {FOUND: SHOWN}` in task.yaml or --class-names FOUND=SHOWN,…"
        )
    return labels.in_order(range(len(found)), listed)


def _moved(old: Tensor, places: Sequence[int]) -> Tensor:
    return torch.tensor([*places, UNLABELLED])[old]


def check_names(names: Sequence[str], where: str) -> None:
    """Raises DataError if a class has no name, two have one, or there is only one class."""
    for place, name in enumerate(names):
        if not name.strip():
            raise DataError(f"{where}: class {place} has no name: give it one by class_names in task.yaml.")
        if name in names[:place]:
            raise DataError(
                f"{where}: classes {list(names).index(name)} and {place} are both called {name!r}: tell them apart by "
                "class_names in task.yaml."
            )
    if len(names) < 2:
        raise DataError(f"{where}: all rows are of one class, {shortened(names)}: there is nothing to tell apart.")


def shortened(names: Sequence[Any]) -> str:
    return ", ".join(str(name) for name in names[:6]) + (f", … ({len(names)})" if len(names) > 6 else "")


def stratified(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draws a share of every class for testing; a class of one row is kept for training.

    Arguments:
        labels: Class indices (rows,); rows without a class, -1, are in neither.

    Returns:
        Rows to train on and to test on, each in the table's order.
    """
    generator = torch.Generator().manual_seed(seed)
    test = []
    for number in labels[labels >= 0].unique().tolist():
        rows = torch.nonzero(labels == number).flatten()
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)
        test.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    drawn = torch.cat(test).sort().values
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[drawn] = False
    return torch.nonzero(kept & (labels >= 0)).flatten(), drawn
