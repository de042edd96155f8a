"""Tasks in folders, in the formats in which `datasets` writes and downloads them.

    FOLDER/train.parquet, test.parquet           one file per split
    FOLDER/data/train-*.parquet, test-*.parquet  a download from the hub; `data` may have another name, or be left out
    FOLDER/dataset_dict.json, train/, test/      `DatasetDict.save_to_disk`

Pictures are in a column `image`, classes in a column `label` of type `ClassLabel`. Where there is no such column, the
columns of strings are texts (`text`).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bico.data import text
from bico.data.base import Split, Task
from bico.data.vision8 import PROMPTS
from bico.errors import UnknownTaskError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "test")
DEFAULT_PROMPTS = ("a photo of a {}.",)
IN_MEMORY = 256 << 20
"""Bytes of parquet files up to which a split is read into memory; larger ones are mapped from the cache of `datasets`."""


@dataclass(frozen=True)
class Table:
    """Both splits of a folder; labels are in the column `label`."""

    rows: dict[str, "Dataset"]
    label: str
    digest: str
    """Changes whenever a file does."""

    @property
    def label_names(self) -> list[str]:
        return self.rows["train"].features[self.label].names

    @property
    def strings(self) -> tuple[str, ...]:
        """The columns of text, in order."""
        return string_columns(self.rows["train"])

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(part) for split, part in self.rows.items()}

    def split(self, name: str, example: Callable[[Mapping[str, Any]], Any]) -> Split:
        """Opens a split, without the rows that have no label (-1, as SNLI has some).

        Arguments:
            example: From a row to what the model is shown.
        """
        part, labels = self.rows[name], torch.tensor(self.rows[name][self.label][:])
        if (labels >= 0).all():
            return Split(labels, lambda index: example(part[index]))
        kept = torch.nonzero(labels >= 0).flatten()
        return Split(labels[kept], lambda index: example(part[int(kept[index])]))


@cache
def from_folder(folder: Path) -> Task:
    """A task with the class names that its folder gives, and the prompts that go with its name.

    Raises:
        UnknownTaskError: If files or columns are missing.
    """
    table = read_folder(folder, None)
    if "image" not in table.rows["train"].features:
        return text_task(folder.name, table, f"--data {folder}")
    return Task(
        folder.name,
        tuple(name.replace("_", " ") for name in table.label_names),
        PROMPTS.get(folder.name, DEFAULT_PROMPTS),
        table.digest,
        table.sizes,
        cache(lambda split: table.split(split, lambda row: row["image"])),
    )


def text_task(name: str, table: Table, where: str, form: text.Form | None = None) -> Task:
    """A task of texts, put and answered as `text` says for its name.

    Arguments:
        where: How messages call the table.
        form: How examples are put; by the task's name unless given.

    Raises:
        UnknownTaskError: If it lacks columns.
        DataError: If the classes are not those that the name stands for.
    """
    posed = text.form_of(name, table.strings, table.label_names, where, form)
    splits = cache(lambda split: table.split(split, posed.put))
    sizes = SizesOf(splits)
    return Task(name, posed.answers, (posed.prompt,), table.digest, sizes, splits, modality="text")


@dataclass(frozen=True)
class SizesOf:
    """Samples by split, known once a split is opened."""

    open: Callable[[str], Split]

    def __getitem__(self, split: str, /) -> int:
        return len(self.open(split))


@cache
def read_folder(
    folder: Path,
    image: str | None = "image",
    label: str = "label",
    names: Sequence[Sequence[str]] = (("train",), ("test",)),
) -> Table:
    """Reads both splits of a folder.

    Arguments:
        image: The column that must be there; without one, `image` or a column of strings.
        names: What the files of the two splits may be called, in the order of preference.

    Raises:
        UnknownTaskError: If files or columns are missing.
    """
    import datasets  # seconds to import, and only needed here

    if saved := (folder / "dataset_dict.json").is_file():
        found = {split: [sorted((folder / name).glob("*.arrow")) for name in called] for split, called in _named(names)}
    else:
        found = {split: [parquet_files(folder, name) for name in called] for split, called in _named(names)}
    files = {split: next(filter(None, choices), []) for split, choices in found.items()}
    _check_files(folder, files)
    if saved:
        rows = {split: datasets.load_from_disk(str(paths[0].parent)) for split, paths in files.items()}
    else:
        rows = {split: _read_parquet(paths) for split, paths in files.items()}
    for split, part in rows.items():
        shown = image in part.features if image else "image" in part.features or string_columns(part)
        if not shown or not isinstance(part.features.get(label), datasets.ClassLabel):
            needed = f"a column `{image}`" if image else "a column `image`, or columns of text,"
            raise UnknownTaskError(
                f"--data {folder}: the {split} split needs {needed} and a column `{label}` of type ClassLabel, has "
                f"{list(part.features)}."
            )
    return Table(rows, label, _digest(path for paths in files.values() for path in paths))


def string_columns(part: "Dataset") -> tuple[str, ...]:
    kinds = {name: getattr(kind, "dtype", None) for name, kind in part.features.items()}
    return tuple(name for name, kind in kinds.items() if kind in ("string", "large_string"))


def _named(names: Sequence[Sequence[str]]) -> Iterable[tuple[str, Sequence[str]]]:
    return zip(SPLITS, names, strict=True)


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Returns the parquet files of a split, in order; none if there are none."""
    whole = folder / f"{split}.parquet"
    if whole.is_file():
        return [whole]
    # The hub keeps a data set's files in one folder named after its configuration, `data` for the only one.
    return next(
        (sorted(found) for place in (".", "*") if (found := list(folder.glob(f"{place}/{split}-*.parquet")))), []
    )


def _check_files(folder: Path, files: dict[str, list[Path]]) -> None:
    for split, paths in files.items():
        if not paths:
            raise UnknownTaskError(
                f"--data {folder}: no {split}.parquet there; a task folder holds train.parquet and test.parquet, or "
                "what `datasets` downloads or saves to disk."
            )
        places = {path.parent for path in paths}
        if len(places) > 1:
            raise UnknownTaskError(
                f"--data {folder}: {split} files lie in {', '.join(sorted(place.name for place in places))}; a task folder "
                "holds one of these configurations."
            )


def _read_parquet(paths: list[Path]) -> "Dataset":
    import datasets

    small = sum(path.stat().st_size for path in paths) <= IN_MEMORY
    return datasets.Dataset.from_parquet([str(path) for path in paths], keep_in_memory=small)


def _digest(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
