"""Which column of a table is what: pictures, texts, classes.

A column is taken because it was named, because its type says it, or because its name is one that such columns have. No
column of text is ever taken for being there: it may hold the answer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bico.data.layouts import PICTURES
from bico.data.reading import Reading
from bico.errors import UnknownTaskError

if TYPE_CHECKING:
    from datasets import Dataset

LABELS = ("label", "labels", "fine_label", "class", "target", "category", "label_id", "class_id", "y", "intent", "sentiment",
          "emotion")  # fmt: skip
"""Columns of classes, the likeliest first."""
IMAGES = ("image", "img", "picture", "photo", "images")
PATHS = ("image_path", "file_name", "filename", "filepath", "file_path", "path", "file")
"""Columns of text that are paths of pictures, if their ends say so."""
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "passage"), ("question", "context"), ("query", "passage"), ("query", "document"), ("text1", "text2"),
    ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("title", "content"), ("title", "text"), ("title", "body"),
    ("title", "description"), ("title", "review"), ("subject", "body"), ("subject", "text"), ("headline", "body"),
)  # fmt: skip
TEXTS = (
    "text", "sentence", "content", "review", "question", "document", "tweet", "comment", "message", "body", "utterance",
    "passage", "article", "headline", "title", "subject", "description", "query", "premise", "hypothesis", "sms", "post",
)  # fmt: skip
NAMING = ("label_text", "label_name", "class_name", "label_str", "coarse_label_text", "target_name", "category_name")
"""Columns of text that say the class again."""


@dataclass(frozen=True)
class Columns:
    """What each column is for."""

    label: str
    image: str | None = None
    texts: tuple[str, ...] = ()
    naming: str | None = None
    """A column that names the classes, beside one that numbers them."""
    unread: tuple[str, ...] = ()
    """Columns of text that were left out."""


def is_known_text(name: str) -> bool:
    """Whether columns of this name are known to hold texts."""
    return name.lower() in TEXTS or any(name.lower() in pair for pair in PAIRS)


def _called(there: Collection[str], names: Sequence[str]) -> list[str]:
    """The columns that have one of these names, in the order of the names; capitals do not matter."""
    return [one for name in names for one in sorted(there, key=lambda column: column != name) if one.lower() == name]


def string_columns(part: "Dataset") -> tuple[str, ...]:
    kinds = {name: getattr(kind, "dtype", None) for name, kind in part.features.items()}
    return tuple(name for name, kind in kinds.items() if kind in ("string", "large_string"))


def find_columns(
    part: "Dataset", reading: Reading, where: str, forms: Sequence[tuple[str, ...]] = (), image: str | None = None
) -> Columns:
    """Finds what each column is for.

    Arguments:
        where: How messages call the table.
        forms: Columns of text that the task's name stands for, in the order of preference; one of them must be there.
        image: The column of pictures of a data set that is known.

    Raises:
        UnknownTaskError: If there is none for a purpose, or several; it names them.
    """
    for named in filter(None, (reading.image_column, reading.label_column, *reading.text_columns)):
        if named not in part.features:
            raise UnknownTaskError(f"{where}: no column is called {named!r}; there are {_listed(part.features)}.")
    pictures = None if reading.text_columns else reading.image_column or image or _image_column(part, reading, where)
    if pictures is not None and pictures not in part.features:
        raise UnknownTaskError(f"{where}: needs a column `{pictures}`, has {_listed(part.features)}: {_HOW}.")
    label = reading.label_column or _label_column(part, where, pictures)
    naming = next((name for name in _called(string_columns(part), NAMING) if name != label), None)
    if pictures is not None:
        return Columns(label, pictures, naming=naming)
    strings = [name for name in string_columns(part) if name != label]
    if label in reading.text_columns:
        raise UnknownTaskError(f"{where}: {label!r} is the column of classes; name columns of text by --text-columns.")
    texts = reading.text_columns or _text_columns(strings, where, part.features, forms)
    return Columns(label, None, tuple(texts), naming, tuple(name for name in strings if name not in texts))


_HOW = "name the columns by --image-column or --text-columns, and --label-column, or in task.yaml"


def _listed(names: Collection[str]) -> str:
    return str(list(names))


def _image_column(part: "Dataset", reading: Reading, where: str) -> str | None:
    typed = [name for name, kind in part.features.items() if _holds_pictures(kind)]
    known = [name for name in _called(part.features, (*IMAGES, *PATHS)) if name != reading.label_column]
    for name in known:
        if name.lower() in IMAGES or name in typed or _are_paths(part, name):
            return name
    if len(typed) > 1:
        raise UnknownTaskError(f"{where}: {_listed(typed)} are all pictures: say which by --image-column.")
    return typed[0] if typed else None


def _holds_pictures(kind: Any) -> bool:
    """Whether a column's type is that of pictures, or of files: bytes, alone or with a path."""
    files = isinstance(kind, dict) and set(kind) == {"bytes", "path"}
    return type(kind).__name__ == "Image" or files or getattr(kind, "dtype", None) in ("binary", "large_binary")


def _are_paths(part: "Dataset", name: str) -> bool:
    first = next((cell for cell in part[: min(20, len(part))][name] if cell), None)
    return isinstance(first, str) and first.lower().endswith(PICTURES)


def _label_column(part: "Dataset", where: str, image: str | None) -> str:
    typed = [name for name, kind in part.features.items() if type(kind).__name__ == "ClassLabel"]
    known = [name for name in _called(part.features, LABELS) if name != image]
    found = (
        known[:1]
        if (known and known[0].lower() == "label") or not typed
        else [name for name in known if name in typed][:1] or typed
    )
    if len(found) != 1:
        what = f"{_listed(found)} are all classes: say which by --label-column" if found else _HOW
        raise UnknownTaskError(f"{where}: needs a column `label` of classes, has {_listed(part.features)}: {what}.")
    return found[0]


def _text_columns(
    strings: Sequence[str], where: str, features: Mapping[str, Any], forms: Sequence[tuple[str, ...]]
) -> tuple[str, ...]:
    if forms:
        if fitting := next((names for names in forms if set(names) <= set(strings)), None):
            return fitting
        wanted = " or ".join(" and ".join(names) for names in forms)
        raise UnknownTaskError(f"{where} needs the columns of text {wanted}, has {_listed(features)}: {_HOW}.")
    free = [name for name in strings if name.lower() not in NAMING]
    known = [name for name in free if is_known_text(name)]
    for names in (*PAIRS, *((name,) for name in TEXTS)):
        if set(names) == {name.lower() for name in known}:
            return tuple(known)  # in the table's order
    if len(free) == 1 and not known:
        return tuple(free)
    if not free:
        raise UnknownTaskError(
            f"{where}: needs a column `image`, or columns of text, beside the classes; has {_listed(features)}: {_HOW}."
        )
    raise UnknownTaskError(
        f"{where}: which of the columns {_listed(known or free)} is the text? Say so by --text-columns {','.join(known or free)} "
        "(one or several), or in task.yaml: a column that holds the answer must not be read."
    )
