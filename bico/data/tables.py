"""From the files of a split to a table of `datasets`, and what its files say when they are damaged."""

import csv
import hashlib
import io
import json
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
            with path.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
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
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        comma = "\t" if part.kind == "tsv" else ";" if ";" in first and "," not in first else ","
        try:
            names, rows = _cells(path, csv.reader(io.StringIO(text, newline=""), delimiter=comma, strict=True))
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


def _cells(path: Path, reader: Any) -> tuple[list[str], list[list[str]]]:
    """The names of columns, and the rows that are not empty."""
    names = [name.strip() for name in next(reader, [])]
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
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                rows.append(_row(json.loads, line, f"{path}, line {number}"))
    return _from_rows(rows)


def _json(part: Part, split: str) -> "Dataset":
    rows: list[dict[str, Any]] = []
    for path in part.files:
        text = path.read_text(encoding="utf-8-sig")
        try:
            whole = json.loads(text)
        except json.JSONDecodeError:
            return _json_lines(part, split)
        if isinstance(whole, dict):  # {"data": [...]}
            lists = [value for value in whole.values() if isinstance(value, list)]
            if len(lists) > 1:
                raise DataError(
                    f"{path}: holds several lists, {', '.join(whole)}: write each split into a file of its own."
                )
            whole = lists[0] if lists else [whole]
        rows += [_row(lambda row: row, row, f"{path}, entry {n}") for n, row in enumerate(whole)]
    return _from_rows(rows)


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

    kinds = {name: pa.string() if all(cell is None for cell in cells) else None for name, cells in columns.items()}
    return datasets.Dataset(pa.table({name: pa.array(cells, kinds[name]) for name, cells in columns.items()}))


def _classes(part: Part, _split: str) -> "Dataset":
    """The paths of pictures, and the folders that they lie in."""
    return _from_columns({"image": [str(p) for p in part.files], "label": [p.parent.name for p in part.files]})


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
