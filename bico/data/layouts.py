"""What lies in a folder of data: which files make which split. Nothing is read here but names.

FILE.csv                                     one table; any kind of table below
FOLDER/train.csv, test.csv                   one file per split: parquet, csv, tsv, jsonl or json
FOLDER/data/train-*.parquet, test-*.parquet  a download from the hub; `data` may have another name, or be left out
FOLDER/default/train/0000.parquet            the hub's own conversion; also FOLDER/train/anything.csv
FOLDER/train/CLASS/**/*.png                  a folder per class; without `train` and `test` a single split
FOLDER/dataset_dict.json, train/, test/      `DatasetDict.save_to_disk`; also each split saved by itself, or one only
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bico.errors import UnknownTaskError, one_line

TRAIN, TEST = ("train", "training"), ("test", "testing")
HELD_OUT = ("validation", "valid", "val", "dev", "eval")
"""What is measured on where there is no test split."""
NAMES = (*TRAIN, *TEST, *HELD_OUT)
TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")
PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
            ".avif", ".jp2", ".tga")  # fmt: skip
PACKED = (".arrow", ".tar", ".zip", ".gz", ".xz", ".bz2", ".zst")
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "package.json", "config.json")
"""Files about data that are no data."""
WANTED = (
    "a task folder holds train.parquet and test.parquet (or csv, tsv, jsonl), a folder per class (train/CLASS/*.png), or what "
    "`datasets` downloads or saves to disk"
)


@dataclass(frozen=True)
class Part:
    """One split as it lies on disk."""

    kind: str
    """parquet, csv, tsv, jsonl, json; `saved` by `datasets`; `classes`: a folder per class; `packed`: what only
    `datasets.load_dataset` opens."""
    files: tuple[Path, ...]
    root: Path
    """Its folder: where the names of classes, or of a saved data set, begin."""


Layout = dict[str, Part]
"""Splits by name; a single one that no name tells is called `` (nothing)."""


def find_layout(place: Path, names: Sequence[str] = ()) -> Layout:
    """Finds the splits of a folder, or of one table.

    Arguments:
        names: What splits may be called, beside the usual.

    Raises:
        UnknownTaskError: If nothing is there that can be read, or it can be read in two ways.
    """
    if place.is_file():
        if place.suffix.lower() not in TABLES:
            raise UnknownTaskError(f"--data {place}: {place.suffix or 'this kind of'} file is no table; {WANTED}.")
        return {"": Part(_kind(place), (place,), place.parent)}
    if not place.is_dir():
        raise UnknownTaskError(f"--data {place}: there is no such folder.")
    found = (
        _saved(place) or _split_tables(place, names) or _class_folders(place) or _single_table(place) or _packed(place)
    )
    if found:
        return found
    here = sorted(path.name for path in _visible(place))
    shown = f"{', '.join(here[:5])}{', …' if len(here) > 5 else ''}" if here else "nothing"
    raise UnknownTaskError(f"--data {place}: no train.parquet there but {shown}; {WANTED}.")


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))


def _kind(path: Path) -> str:
    return {"ndjson": "jsonl"}.get(name := path.suffix.lower().removeprefix("."), name)


def _saved(folder: Path) -> Layout:
    """What `save_to_disk` wrote: a dictionary of splits, or each split, or one data set."""
    if (folder / "state.json").is_file():
        return {"": _saved_part(folder)}
    return {path.name: _saved_part(path) for path in _visible(folder) if (path / "state.json").is_file()}


def _saved_part(folder: Path) -> Part:
    return Part("saved", tuple(sorted(folder.glob("*.arrow"))), folder)


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Returns the parquet files of a split, in order; none if there are none."""
    part = _tables(folder, (split,)).get(split)
    return [] if part is None or part.kind != "parquet" else list(part.files)


def _split_tables(folder: Path, names: Sequence[str]) -> Layout:
    """Tables, unless they are fewer splits than folders of classes are there: these have a list beside the classes."""
    found = _tables(folder, names)
    if found and not names and not {*TEST, *HELD_OUT} & found.keys():
        classes = _split_folders(folder)
        return classes if found.keys() < classes.keys() else found
    return found


def _tables(folder: Path, names: Sequence[str] = ()) -> Layout:
    """Tables that are named after splits, or lie in folders that are; the fewer folders deep the better."""
    levels: list[list[tuple[str, Path, Path]]] = [[], []]  # of (split, the place of its configuration, file)
    for path in _visible(folder):
        if path.is_file():
            levels[0] += [(split, folder, path) for split in _named(path, names)]
            continue
        for below in _visible(path):
            if below.is_file() and path.name.lower() in NAMES:
                levels[0] += [(path.name.lower(), folder, below)] * _is_table(below)
            elif below.is_file():
                levels[1] += [(split, path, below) for split in _named(below, names)]
            elif below.name.lower() in NAMES:
                levels[1] += [(below.name.lower(), path, file) for file in _visible(below) if _is_table(file)]
    found: Layout = {}
    for level in levels:
        for split in sorted({split for split, _, _ in level}, key=(*names, *NAMES).index):
            found.setdefault(split, _one_part(folder, split, [(p, f) for s, p, f in level if s == split]))
    return found


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in TABLES and path.name not in ABOUT


def _named(path: Path, names: Sequence[str]) -> Iterable[str]:
    """The split that a table is named after, if it is: train.csv, train-00000-of-00002.parquet, reviews_train.csv."""
    if not _is_table(path):
        return
    stem = path.name[: -len(path.suffix)].lower()
    known = (*names, *NAMES)
    exact = next((name for name in known if stem == name or stem.startswith(f"{name}-")), None)
    parts = [part for part in re.split(r"[-_. ]+", stem) if part in known]
    if exact or len(parts) == 1:
        yield exact or parts[0]


def _one_part(folder: Path, split: str, found: list[tuple[Path, Path]]) -> Part:
    """The files of one split, if they are parts of one table.

    Raises:
        UnknownTaskError: If they are of two configurations, two kinds, or two tables.
    """
    places = sorted({place for place, _ in found})
    if len(places) > 1:
        raise UnknownTaskError(
            f"--data {folder}: {split} files lie in {', '.join(place.name for place in places)}; a task folder holds one of "
            "these configurations."
        )
    files = sorted(file for _, file in found)
    whole = [file for file in files if file.stem.lower() == split and file.parent == places[0]]
    if len(whole) == 1 and all(file.suffix == whole[0].suffix for file in files):
        files = whole  # beside its own shards
    _check_shards(folder, files)
    kinds = sorted({_kind(file) for file in files})
    tables = sorted({re.sub(r"\d+", "", file.stem) for file in files})
    if len(kinds) > 1 or (len(tables) > 1 and files[0].parent.name.lower() != split):
        names = ", ".join(file.name for file in files[:4])
        raise UnknownTaskError(f"--data {folder}: the {split} split may be any of {names}: keep one table of it there.")
    return Part(kinds[0], tuple(files), files[0].parent)


def _check_shards(folder: Path, files: Sequence[Path]) -> None:
    """Raises UnknownTaskError if a split lacks some of the files that their names count."""
    shards = [found for file in files if (found := re.search(r"-(\d{5})-of-(\d{5})", file.name))]
    counts = {int(found[2]) for found in shards}
    if shards and (len(counts) > 1 or {int(found[1]) for found in shards} != set(range(max(counts)))):
        absent = sorted(set(range(max(counts))) - {int(found[1]) for found in shards})
        what = f"{len(absent)} are absent, the first is number {absent[0]}" if absent else "they count differently"
        raise UnknownTaskError(
            f"--data {folder}: {files[0].name} is one of {max(counts)} files, and {what}: fetch them all, or call those that you "
            "want by other names."
        )


def _split_folders(folder: Path) -> Layout:
    """Folders that are named after splits, of pictures in a folder per class; also one folder down."""
    for place in (folder, *(path for path in _visible(folder) if path.is_dir())):
        splits = [path for path in _visible(place) if path.is_dir() and path.name.lower() in NAMES]
        found = {path.name.lower(): Part("classes", files, path) for path in splits if (files := _pictures(path))}
        if found and (place == folder or len(found) > 1):
            return found
    return {}


def _class_folders(folder: Path) -> Layout:
    """Pictures in a folder per class, within a folder per split or without.

    Raises:
        UnknownTaskError: If there are folders of splits, and classes are not in them.
    """
    if found := _split_folders(folder):
        return found
    files = _pictures(folder)
    places = [path.relative_to(folder).parts[:-1] for path in files]
    if files and all(parts[0].lower() in NAMES for parts in places):
        raise UnknownTaskError(
            f"--data {folder}: its splits hold pictures and no folder per class: put them into train/CLASS/ and test/CLASS/, "
            "or add a table train.csv with the columns file_name and label, and test.csv."
        )
    if any(len(parts) > 1 and parts[1].lower() in NAMES for parts in places):
        raise UnknownTaskError(
            f"--data {folder}: its folders of classes hold folders of splits: put them the other way round, train/CLASS/."
        )
    return {"": Part("classes", files, folder)} if files else {}


def _pictures(root: Path) -> tuple[Path, ...]:
    classes = [path for path in _visible(root) if path.is_dir()]
    return tuple(file for path in classes for file in _below(path) if file.suffix.lower() in PICTURES)


def strays(part: Part, where: str) -> str:
    """A line on files in folders of classes that are left out; nothing if there are none."""
    if part.kind != "classes":
        return ""
    taken = {*part.files}
    left = [path for path in _below(part.root) if path not in taken and path.name not in ("Thumbs.db", "desktop.ini")]
    what = "files are no pictures and are" if len(left) > 1 else "file is no picture and is"
    return f"{where}: {len(left)} {what} left out, such as {left[0].relative_to(part.root)}." if left else ""


def _below(folder: Path) -> Iterable[Path]:
    """All files of a folder and of the folders in it."""
    for path in _visible(folder):
        yield from _below(path) if path.is_dir() else (path,)


def _single_table(folder: Path) -> Layout:
    tables = [path for path in _visible(folder) if _is_table(path)]
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables[:4])
        raise UnknownTaskError(
            f"--data {folder}: {names}: no name says which is `train` and which `test`: call them train{tables[0].suffix} and "
            f"test{tables[0].suffix}, or name one of them by --data."
        )
    return {"": Part(_kind(tables[0]), (tables[0],), folder)} if tables else {}


def _packed(folder: Path) -> Layout:
    """Archives and whatever else `datasets.load_dataset` opens."""
    files = tuple(path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PACKED and path.is_file())
    if not files:
        return {}
    import datasets

    try:
        names = datasets.get_dataset_split_names(str(folder))
    except Exception as error:  # it raises whatever its readers do
        raise UnknownTaskError(
            f"--data {folder}: `datasets.load_dataset` cannot open it: {one_line(error)}."
        ) from error
    return {name: Part("packed", files, folder) for name in names}


@dataclass(frozen=True)
class Chosen:
    """The two splits that a task is made of."""

    train: Part
    test: Part | None
    """None where it is drawn from `train`."""
    note: str = ""
    """What should be said of the choice."""


def choose_splits(
    layout: Layout, where: str, test_split: str | None, test_share: float | None, names: Sequence[Sequence[str]] = ()
) -> Chosen:
    """Chooses what to learn from and what to measure on.

    Arguments:
        where: How messages call the folder.
        test_split: The split to measure on, if one was named.
        test_share: The share of a single split to measure on.
        names: What both may be called, in place of the usual.

    Raises:
        UnknownTaskError: If there is no such split, or only one and no share of it is asked for.
    """
    trains, tests = names or (TRAIN, TEST)
    known = ", ".join(sorted(filter(None, layout))) or "a single split"
    train = next((layout[name] for name in (*trains, *([""] if len(layout) == 1 else [])) if name in layout), None)
    if train is None:
        raise UnknownTaskError(f"{where}: no train.parquet there, nor another split called train, but {known}.")
    if test_split is not None:
        if test_split not in layout or layout[test_split] is train:
            raise UnknownTaskError(f"{where}: no split to measure on is called {test_split!r}; there is {known}.")
        return Chosen(train, layout[test_split])
    others = [name for name in (*tests, *([] if names else HELD_OUT)) if name in layout]
    if others and test_share is not None:
        raise UnknownTaskError(f"{where}: there is a {others[0]} split already; --test-share is for a single split.")
    if others:
        aloud = f"{where}: there is no test split; `{others[0]}` is measured on." if others[0] not in tests else ""
        return Chosen(train, layout[others[0]], aloud)
    if test_share is None:
        raise UnknownTaskError(
            f"{where}: there is no test split, nor one called {', '.join(HELD_OUT[:3])}, but {known}: add one, or keep a part of "
            "it for testing by --test-share 0.2."
        )
    return Chosen(train, None)
