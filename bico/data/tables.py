"""From the files of a split to a table of `datasets`, and what its files say when they are damaged."""

import codecs
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bico.data.layouts import Part
from bico.errors import BicoError, DataError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

IN_MEMORY = 256 << 20
"""Bytes of parquet files up to which a split is read into memory; larger ones are mapped from the cache of `datasets`."""


def read_part(part: Part, split: str, where: str) -> "Dataset":
    """Reads one split.

    Arguments:
        where: How messages call the folder.

    Raises:
        DataError: If a file is damaged, or holds no table.
    """
    try:
        return READERS[part.kind](part, split)
    except BicoError:
        raise
    except Exception as error:  # pyarrow, json, csv and `datasets` each have errors of their own
        names = ", ".join(path.name for path in part.files[:3]) or part.root.name
        said = one_line(error, 200)
        raise DataError(
            f"{where}: the {split} split ({names}) cannot be read: {type(error).__name__}: {said}."
        ) from error


def digest(parts: Iterable[Part], folder: Path) -> str:
    """Changes whenever a file does. Files whose place or name says something count with it."""
    total = hashlib.sha256()
    for part in parts:
        for path in part.files:
            if part.kind not in ("parquet", "saved"):
                total.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            try:
                with path.open("rb") as stream:
                    total.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}): mend it or leave it out.") from error
    return total.hexdigest()


def _parquet(part: Part, _split: str) -> "Dataset":
    import datasets
    import pyarrow.parquet as pq

    if not sum(pq.read_metadata(path).num_rows for path in part.files):
        return datasets.Dataset(pq.read_table(part.files[0]))  # which `from_parquet` refuses
    small = sum(path.stat().st_size for path in part.files) <= IN_MEMORY
    return datasets.Dataset.from_parquet([str(path) for path in part.files], keep_in_memory=small)


def _saved(part: Part, _split: str) -> "Dataset":
    import datasets

    return datasets.load_from_disk(str(part.root))


def _packed(part: Part, split: str) -> "Dataset":
    import datasets

    return datasets.load_dataset(str(part.root), split=split)


def _delimited(part: Part, _split: str) -> "Dataset":
    """Every cell as text: `NA`, `None` and `007` are what they say, and an empty cell is none."""
    csv.field_size_limit(min(sys.maxsize, 1 << 31))
    columns: dict[str, list[Any]] = {}
    for path in part.files:
        text = _text(path)
        first = re.sub(r'"[^"]*"', "", text.partition("\n")[0])  # what is quoted separates nothing
        comma = "\t" if part.kind == "tsv" else next((mark for mark in ",;\t|" if mark in first), ",")
        try:
            names, rows = _cells(path, _reader(text, comma))
            if any(cell.startswith(' "') and cell.endswith('"') for row in rows[:100] for cell in row):
                names, rows = _cells(path, _reader(text, comma, skipinitialspace=True))  # blanks before quoted cells
        except (csv.Error, DataError):
            if part.kind != "tsv":
                raise
            # Many such files quote nothing, and a quotation mark is one.
            names, rows = _cells(path, csv.reader(text.split("\n"), delimiter=comma, quoting=csv.QUOTE_NONE))
        for place, name in enumerate(names):
            columns.setdefault(name, []).extend(row[place] or None for row in rows)
    if len({len(cells) for cells in columns.values()}) > 1:
        raise DataError(f"{part.files[0]} and the other files of its split have different columns.")
    return _from_columns(columns)


def _text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 that says so.

    Raises:
        DataError: If it is in another encoding.
    """
    with path.open("rb") as stream:
        wide = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        return path.read_text(encoding="utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: is no UTF-8: save the file as UTF-8.") from None


def _reader(text: str, comma: str, **more: Any) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=comma, strict=True, **more)


def _cells(path: Path, reader: Any) -> tuple[list[str], list[list[str]]]:
    """The names of columns, and the rows that are not empty."""
    # An index has no name, and so has what stands behind a last comma.
    names = [name.strip() or f"column {place}" for place, name in enumerate(next(reader, []), 1)]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have one name: {', '.join(names)}.")
    rows = []
    for row in reader:
        if row and len(row) != len(names):
            raise DataError(f"{path}, line {reader.line_num}: {len(row)} cells, and {len(names)} columns.")
        if row:
            rows.append(row)
    return names, rows


def _json_lines(part: Part, _split: str) -> "Dataset":
    rows: list[dict[str, Any]] = []
    for path in part.files:
        for number, line in enumerate(_text(path).split("\n"), 1):
            if line.strip():
                rows.append(_row(json.loads, line, f"{path}, line {number}"))
    return _from_rows(rows)


def _json(part: Part, split: str) -> "Dataset":
    rows: list[dict[str, Any]] = []
    for path in part.files:
        text = _text(path)
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            return _json_lines(part, split)
        if isinstance(whole, dict) and (columns := _by_column(whole)):
            whole = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        elif isinstance(whole, dict):  # {"data": [...]}
            lists = [value for value in whole.values() if isinstance(value, list)]
            if len(lists) > 1:
                raise DataError(
                    f"{path}: holds several lists, {', '.join(whole)}: write each split into a file of its own."
                )
            whole = lists[0] if lists else [whole]
        rows += [_row(lambda row: row, row, f"{path}, entry {n}") for n, row in enumerate(whole)]
    return _from_rows(rows)


def _by_column(whole: dict[str, Any]) -> dict[str, list[Any]]:
    """The columns of an object that holds a list for each, or as pandas writes a table; nothing of others."""
    if {"columns", "data"} <= whole.keys() <= {"columns", "data", "index"}:
        rows = whole["data"]
        return {name: [row[place] for row in rows] for place, name in enumerate(whole["columns"])}
    cells = list(whole.values())
    if len(cells) > 1 and all(isinstance(one, dict) and one.keys() == cells[0].keys() for one in cells):
        return {name: list(one.values()) for name, one in whole.items()}
    plain = all(isinstance(one, list) and not any(isinstance(cell, dict) for cell in one) for one in cells)
    return whole if plain and len(cells) > 1 and len({len(one) for one in cells}) == 1 and cells[0] else {}


def _row(read: Callable[[Any], Any], given: Any, where: str) -> dict[str, Any]:
    try:
        row = read(given)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: is no JSON: {one_line(error)}.") from None
    if not isinstance(row, dict):
        raise DataError(f'{where}: a row is an object such as {{"text": …, "label": …}}, here it is {str(row)[:40]!r}.')
    return row


def _from_rows(rows: list[dict[str, Any]]) -> "Dataset":
    names = dict.fromkeys(name for row in rows for name in row)
    return _from_columns({name: [row.get(name) for row in rows] for name in names})


def _from_columns(columns: dict[str, list[Any]]) -> "Dataset":
    import datasets
    import pyarrow as pa

    for name, cells in columns.items():
        there = {type(cell) for cell in cells if cell is not None}
        if str in there and len(there) > 1:
            other = min((kind.__name__ for kind in there - {str}), key=str)
            raise ValueError(f"column `{name}` holds a str in some rows and a {other} in others: write all alike")
    kinds = {name: pa.string() if all(cell is None for cell in cells) else None for name, cells in columns.items()}
    return datasets.Dataset(pa.table({name: pa.array(cells, kinds[name]) for name, cells in columns.items()}))


def _classes(part: Part, _split: str) -> "Dataset":
    """The paths of pictures, and the folders of classes that they lie in."""
    return _from_columns(
        {
            "image": [str(path) for path in part.files],
            "label": [path.relative_to(part.root).parts[0] for path in part.files],
        }
    )


READERS: dict[str, Callable[[Part, str], "Dataset"]] = {
    "parquet": _parquet,
    "saved": _saved,
    "packed": _packed,
    "csv": _delimited,
    "tsv": _delimited,
    "jsonl": _json_lines,
    "json": _json,
    "classes": _classes,
}
