"""Tasks in folders, in the formats in which `datasets` writes and downloads them.

    FOLDER/train.parquet, test.parquet           one file per split
    FOLDER/data/train-*.parquet, test-*.parquet  a download from the hub; `data` may have another name, or be left out
    FOLDER/dataset_dict.json, train/, test/      `DatasetDict.save_to_disk`

Pictures are in a column `image`, classes in a column `label` of type `ClassLabel`.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

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
    """Both splits of a folder, with pictures and labels where `image` and `label` say."""

    rows: dict[str, "Dataset"]
    image: str
    label: str
    digest: str
    """Changes whenever a file does."""

    @property
    def label_names(self) -> list[str]:
        return self.rows["train"].features[self.label].names

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(part) for split, part in self.rows.items()}

    def split(self, name: str) -> Split:
        part = self.rows[name]
        return Split(torch.tensor(part[self.label][:]), lambda index: part[index][self.image])


@cache
def from_folder(folder: Path) -> Task:
    """A task with the class names that its folder gives, and the prompts that go with its name.

    Raises:
        UnknownTaskError: If files or columns are missing.
    """
    table = read_folder(folder)
    return Task(
        folder.name,
        tuple(name.replace("_", " ") for name in table.label_names),
        PROMPTS.get(folder.name, DEFAULT_PROMPTS),
        table.digest,
        table.sizes,
        cache(table.split),
    )


@cache
def read_folder(folder: Path, image: str = "image", label: str = "label") -> Table:
    """Reads both splits of a folder.

    Raises:
        UnknownTaskError: If files or columns are missing.
    """
    import datasets  # seconds to import, and only needed here

    if (folder / "dataset_dict.json").is_file():
        files = {split: sorted((folder / split).glob("*.arrow")) for split in SPLITS}
        _check_files(folder, files)
        rows = {split: datasets.load_from_disk(str(folder / split)) for split in SPLITS}
    else:
        files = {split: parquet_files(folder, split) for split in SPLITS}
        _check_files(folder, files)
        rows = {split: _read_parquet(paths) for split, paths in files.items()}
    for split, part in rows.items():
        if image not in part.features or not isinstance(part.features.get(label), datasets.ClassLabel):
            raise UnknownTaskError(
                f"--data {folder}: the {split} split needs a column `{image}` and a column `{label}` of type "
                f"ClassLabel, has {list(part.features)}."
            )
    return Table(rows, image, label, _digest(path for paths in files.values() for path in paths))


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
