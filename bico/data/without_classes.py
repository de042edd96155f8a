"""What tasks without classes share: both splits of a folder as plain rows, and finding a task by its folder's name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from bico.data.base import Task, held_out
from bico.data.layouts import choose_splits, find_layout
from bico.data.reading import Reading
from bico.data.tables import digest, read_part
from bico.errors import UnknownTaskError

if TYPE_CHECKING:
    from datasets import Dataset

C = TypeVar("C")
R = TypeVar("R")


@dataclass(frozen=True)
class Rows(Generic[C, R]):
    """What a folder holds."""

    columns: C
    """What each column is for."""
    of: dict[str, list[R]]
    """By split."""
    digest: str
    """Of the files."""
    about: dict[str, object]
    """What of the reading stands in the task's identity, since it says which rows are for testing."""
    note: str


def read_rows(
    folder: Path,
    reading: Reading,
    where: str,
    find_columns: Callable[["Dataset", Reading, str], C],
    rows: Callable[["Dataset", C, str], list[R]],
) -> Rows[C, R]:
    """Reads both splits of a folder; of a single one, a share is kept for testing.

    Arguments:
        where: How messages call the folder.
        find_columns: From the training split, what each column is for.
        rows: From a split, its rows.

    Raises:
        UnknownTaskError: If files or columns are missing, or nothing says which to take.
        DataError: If a file is damaged, or a row is none.
    """
    chosen = choose_splits(find_layout(folder), where, reading.test_split, reading.test_share)
    parts = {"train": chosen.train} | ({} if chosen.test is None else {"test": chosen.test})
    tables = {split: read_part(part, split, where) for split, part in parts.items()}
    columns = find_columns(tables["train"], reading, where)
    found = {split: rows(table, columns, f"{where}: the {split} split") for split, table in tables.items()}
    if chosen.test is None:
        train, test = held_out(found["train"], reading.test_share, reading.test_seed, where)
        found = {"train": train, "test": test}
    about: dict[str, object] = {}
    if reading.test_share is not None:
        about |= {"test_share": reading.test_share, "test_seed": reading.test_seed}
    if reading.test_split is not None:
        about["test_split"] = reading.test_split
    root = folder if folder.is_dir() else folder.parent
    return Rows(columns, found, digest(parts.values(), root), about, chosen.note)


def task_named(
    name: str,
    folders: Mapping[str, Path],
    reading: Reading,
    read: Callable[[Path, Reading], Task],
    loss: str,
    holds: str,
) -> Task:
    """Returns the task of a name.

    Arguments:
        folders: Folders of data by the names of their tasks.
        read: Makes a task of a folder.
        loss: The loss that asks for such tasks, and `holds` what it reads, for messages.

    Raises:
        UnknownTaskError: If none of the folders is its.
    """
    if name not in folders:
        raise UnknownTaskError(
            f"loss={loss} reads {holds} from a folder, and there is none for {name!r}: give --data FOLDER; the folder's name "
            "is the task's."
        )
    return read(folders[name], reading)
