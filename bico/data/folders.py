"""Tasks in folders: what lies there (`layouts`), which column is what (`columns`), classes (`labels`), pictures (`pictures`).

docs/your-own-data.md has all that is read, and what is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bico.data import text
from bico.data.base import Split, Task
from bico.data.columns import Columns, find_columns, is_known_text
from bico.data.labels import Labels, check_names, read_labels, renamed, shortened, stratified
from bico.data.layouts import choose_splits, find_layout, strays
from bico.data.pictures import DECODING, Looked, PictureColumn, top_of
from bico.data.reading import NOTHING_SAID, Reading, check_templates, read_task_file, text_prompt
from bico.data.tables import digest, read_part
from bico.data.vision8 import PROMPTS
from bico.errors import DataError, UnknownTaskError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "test")
DEFAULT_PROMPTS = ("a photo of a {}.",)


@dataclass(frozen=True)
class Table:
    """Both splits of a folder."""

    where: str
    """How messages call it."""
    rows: dict[str, "Dataset"]
    bases: dict[str, tuple[Path, Path]]
    """By split, what paths of pictures may be relative to: the folder of the file that names them, and the whole folder."""
    columns: Columns
    labels: Labels
    kept: dict[str, Tensor]
    """By split, the rows that have a class and are not of the other split."""
    reading: Reading
    digest: str
    """Changes whenever a file does."""
    notes: tuple[str, ...]

    @property
    def about(self) -> dict[str, object]:
        """What, beside files and classes, determines what is read: empty for `image`, or texts, and `label` as they lie."""
        columns, reading = self.columns, self.reading
        chosen = {"label": columns.label, "image": columns.image} if columns.image else {"label": columns.label}
        told: dict[str, object] = {key: name for key, name in chosen.items() if key != name}
        if columns.texts and (reading.text_columns or reading.prompts):
            told["texts"] = list(columns.texts)
        about: dict[str, object] = {"columns": told} if told else {}
        if self.labels.renumbered:
            about["test_classes"] = "by name"
        if reading.test_share is not None:
            about |= {"test_share": reading.test_share, "test_seed": reading.test_seed}
        if reading.test_split is not None:
            about["test_split"] = reading.test_split
        if reading.class_names:
            about["class_names"] = [list(one) if isinstance(one, tuple) else one for one in reading.class_names]
        return about

    @property
    def sizes(self) -> dict[str, int]:
        return {split: len(rows) for split, rows in self.kept.items()}

    def split(self, name: str, example: Callable[[int], Any]) -> Split:
        """Opens a split.

        Arguments:
            example: From a row's number to what the model is shown.
        """
        kept = self.kept[name]
        return Split(self.labels.numbers[name][kept], lambda index: example(int(kept[index])))


@dataclass(frozen=True)
class SizesOf:
    """Samples by split, known once a split is opened."""

    open: Callable[[str], Split]

    def __getitem__(self, split: str, /) -> int:
        return len(self.open(split))


@cache
def read_folder(
    folder: Path,
    reading: Reading = NOTHING_SAID,
    names: tuple[tuple[str, ...], ...] = (),
    forms: tuple[tuple[str, ...], ...] = (),
    where: str = "",
) -> Table:
    """Reads both splits of a folder.

    Arguments:
        folder: A folder, or one table.
        reading: What was said about it.
        names: What the files of the two splits may be called, in the order of preference.
        forms: Columns of text of which one set must be there.
        where: How messages call it.

    Raises:
        UnknownTaskError: If files or columns are missing, or nothing says which to take.
        DataError: If a file is damaged, or labels are no classes.
    """
    where = where or f"--data {folder}"
    layout = find_layout(folder, [name for called in names for name in called])
    chosen = choose_splits(layout, where, reading.test_split, reading.test_share, names)
    parts = {"train": chosen.train} | ({} if chosen.test is None else {"test": chosen.test})
    rows = {split: read_part(part, split, where) for split, part in parts.items()}
    columns = find_columns(rows["train"], reading, where, forms)
    for split, part in rows.items():
        for column in filter(None, (columns.label, columns.image, *columns.texts)):
            if column not in part.features:
                raise UnknownTaskError(
                    f"{where}: the {split} split has no column {column!r}, but {list(part.features)}."
                )
    naming = columns.naming if all(columns.naming in part.features for part in rows.values()) else None
    labels = renamed(read_labels(rows, columns.label, where, naming), reading, where)
    kept = {split: torch.nonzero(numbers >= 0).flatten() for split, numbers in labels.numbers.items()}
    notes = [chosen.note, *(_left_out(where, split, labels.numbers[split]) for split in rows)]
    notes += [strays(part, where) for part in parts.values()]
    if len({name.casefold() for name in labels.names}) < len(labels.names):
        notes.append(f"{where}: some of the classes {shortened(labels.names)} differ in nothing but capitals.")
    if columns.unread:
        notes.append(f"{where}: text is read from {', '.join(columns.texts)} and not from {', '.join(columns.unread)}.")
    if chosen.test is None:
        train, test = stratified(labels.numbers["train"], reading.test_share or 0.0, reading.test_seed)
        labels = Labels(labels.names, dict.fromkeys(SPLITS, labels.numbers["train"]), labels.ordered)
        rows, parts, kept = (
            dict.fromkeys(SPLITS, rows["train"]),
            {"train": chosen.train},
            {"train": train, "test": test},
        )
        if not len(test):
            raise DataError(f"{where}: no class has two rows, of which one could be kept for testing.")
    root = folder if folder.is_dir() else folder.parent
    bases = {split: ((parts.get(split) or chosen.train).root, root) for split in SPLITS}
    said = tuple(filter(None, notes))
    return Table(where, rows, bases, columns, labels, kept, reading, digest(parts.values(), root), said)


def _left_out(where: str, split: str, numbers: Tensor) -> str:
    missing = int((numbers < 0).sum())
    return (
        f"{where}: {missing} of {len(numbers)} rows of the {split} split have no label and are left out."
        if missing
        else ""
    )


@cache
def from_folder(folder: Path, reading: Reading = NOTHING_SAID) -> Task:
    """A task with the class names that its folder gives, and the prompts that go with its name, unless told otherwise.

    Arguments:
        reading: What options say; it wins over the folder's `task.yaml`.

    Raises:
        UnknownTaskError: If files or columns are missing.
        DataError: If rows cannot be read.
        ConfigError: If `task.yaml` or a prompt has no meaning.
    """
    reading, name = reading.over(read_task_file(folder)), task_name(folder)
    form = text.FORMS.get(name)
    table = read_folder(folder, reading, forms=form.columns if form else ())
    if table.columns.image is None:
        return text_task(name, table)
    names = table.labels.names if reading.class_names else tuple(n.replace("_", " ") for n in table.labels.names)
    check_names(names, table.where)
    prompts = check_templates(reading.prompts, table.where) or PROMPTS.get(name, DEFAULT_PROMPTS)
    opened, seen = open_pictures(table)
    return Task(name, names, prompts, table.digest, table.sizes, opened, about=table.about | seen, notes=table.notes)


def task_name(folder: Path) -> str:
    """What the task of a folder, or of one table, is called."""
    return folder.stem if folder.is_file() else folder.name


def open_pictures(table: Table) -> tuple[Callable[[str], Split], dict[str, object]]:
    """Looks at all pictures of a table.

    Returns:
        What opens a split, and what of the decoding determines the pictures.

    Raises:
        DataError: If one is missing, cut, or none.
    """
    column, seen = table.columns.image or "", Looked()
    parts = {
        split: PictureColumn(part, column, table.bases[split], f"{table.where}: {split}")
        for split, part in table.rows.items()
    }
    for split, pictures in parts.items():
        pictures.look(seen, table.kept[split].tolist())
    top = top_of(seen, table.where)
    about: dict[str, object] = {} if seen.plain else {"decoding": DECODING}
    if top is not None:
        about["white"] = top
    if seen.outside is not None:
        about["pictures"] = seen.outside.hexdigest()

    @cache
    def opened(split: str) -> Split:
        return table.split(split, lambda row: parts[split].example(row, top))

    return opened, about


def text_task(name: str, table: Table, form: text.Form | None = None) -> Task:
    """A task of texts, put and answered as `text` says for its name, unless its `reading` says otherwise.

    Arguments:
        form: How examples are put; by the task's name unless given.

    Raises:
        DataError: If the classes are not those that the name stands for, or texts are missing or are the answers.
        ConfigError: If the prompt has no meaning.
    """
    where, reading, columns = table.where, table.reading, table.columns.texts
    if table.columns.image is not None:
        raise UnknownTaskError(f"{where}: {name} is a task of texts, and `{table.columns.image}` holds pictures.")
    form = form or text.FORMS.get(name)
    labels = table.labels
    if form is not None and not labels.ordered and sorted(labels.names) == sorted(form.labels):
        labels = labels.in_order([labels.names.index(name) for name in form.labels], form.labels)
        table = replace(table, labels=labels)
    check_names(labels.names, where)
    posed = text.form_of(name, columns, labels.names, where, form, named=bool(reading.class_names))
    if reading.prompts:
        prompt = text_prompt(reading.prompts, columns, where)
        posed = text.Posed(prompt.form, columns, posed.answers)
    notes = (*table.notes, *_check_texts(table))

    @cache
    def opened(split: str) -> Split:
        part = table.rows[split].select_columns(list(columns))
        return table.split(split, lambda row: posed.put(part[row]))

    return Task(name, posed.answers, (posed.prompt,), table.digest, table.sizes, opened, "text", table.about, notes)


def _check_texts(table: Table) -> list[str]:
    """Says how many texts are empty; raises DataError if a row that has a class has none, or the texts are the classes."""
    said = []
    for column in table.columns.texts:
        answers: dict[str, set[int]] = {}
        for split, part in table.rows.items():
            cells, numbers = list(part[column][:]), table.labels.numbers[split]
            rows = table.kept[split].tolist()
            missing = [row for row in rows if not isinstance(cells[row], str)]
            if missing:
                raise DataError(
                    f"{table.where}: {len(missing)} of {len(cells)} rows of the {split} split have no text in `{column}`, the "
                    f"first is row {missing[0]} (from 0): fill them or leave them out."
                )
            if empty := sum(not cells[row].strip() for row in rows):
                said.append(
                    f"{table.where}: {empty} of {len(cells)} texts of the {split} split are empty in `{column}`."
                )
            for row in rows:
                answers.setdefault(cells[row].strip().casefold(), set()).add(int(numbers[row]))
        _check_leak(table, column, answers)
    return said


def _check_leak(table: Table, column: str, answers: Mapping[str, set[int]]) -> None:
    names: Sequence[str] = table.labels.names
    said = all(len(found) == 1 and names[next(iter(found))].casefold() == text for text, found in answers.items())
    known = is_known_text(column) or column in table.reading.text_columns
    # Of a column of unknown name: one text for each class, and no other, is another spelling of the class.
    again = not known and len(answers) == len({number for found in answers.values() for number in found}) <= len(names)
    if said or (again and all(len(found) == 1 for found in answers.values())):
        raise DataError(
            f"{table.where}: `{column}` says the class ({shortened(list(answers))}), which must not be read as text: name the "
            "columns of text by --text-columns or in task.yaml."
        )
