"""Keys: everything that determines an artefact, as one short string.

Two artefacts with one key hold the same content, on any machine and in any process. Where it is unclear whether two
inputs mean the same (1 and 1.0), they get two keys: a needless rebuild costs time, a false hit costs the result.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath

from bico.errors import StoreError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_STAGE = re.compile(r"[a-z][a-z0-9_-]{0,99}")
# No separator and no leading dot: a key is one visible folder name, never a way out of the store.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,149}")


@dataclass(frozen=True)
class Ref:
    """Which artefact, of which store; what tasks exchange in place of tensors.

    Nothing is opened by it: `storage.artefacts.folder_of` gives the files.
    """

    key: str
    root: str
    """The address of its store."""


def artefact_key(stage: str, version: int, **inputs: object) -> str:
    """Returns the key of what `stage` makes of `inputs`.

    Arguments:
        stage: The name of the step, in lower case; the readable part of the key.
        version: Of the step's own maths; raise it whenever the same inputs should give another result.
        inputs: JSON values, enums (as their value), dataclasses (as their class name and fields) and references
            (as their key). Files enter by their digest, tensors by that of the checkpoint that holds them.

    Raises:
        TypeError: If an input is none of these.
        ValueError: If a number is not finite, or the stage's name is not fit for a folder.

    Example:
        >>> artefact_key("evaluate", 1, model="mini-b", alpha=1.0)
        'evaluate-1751712b733fdaf8600a5a54'
    """
    if not _STAGE.fullmatch(stage):
        raise ValueError(f"Stage {stage!r} is not a name: use lower-case letters, digits, '-' and '_'.")
    content = [stage, version, {name: _canonical(value, name) for name, value in inputs.items()}]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{stage}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def checked_key(key: str) -> str:
    """Returns `key` if it can name a folder inside a store.

    Raises:
        StoreError: If it could not, or would lead out of the store.
    """
    if not _KEY.fullmatch(key):
        raise StoreError(f"{key!r} is not an artefact key: use the name that artefact_key() returned.")
    return key


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file, as 64 hexadecimal digits.

    Raises:
        StoreError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"Cannot read {path} ({error.strerror}): check the path and its permissions.") from error


def _canonical(value: object, where: str) -> Json:
    match value:
        case Enum():  # before str and int, which many enums also are
            return _canonical(value.value, where)
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"Key input {where}={value} is not finite, so nothing would equal it.")
            return float(value)
        case Ref():
            return value.key
        case list() | tuple():
            return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case Mapping():
            if bad := [name for name in value if not isinstance(name, str)]:
                raise TypeError(f"Key input {where} has the key {bad[0]!r}, which is not a string: JSON has no other.")
            return {name: _canonical(item, f"{where}.{name}") for name, item in value.items()}
        case PurePath():
            raise TypeError(f"Key input {where} is a path, which says nothing about content: use file_digest().")
    if is_dataclass(value) and not isinstance(value, type):
        # The class name belongs to it: two methods may have the same fields and differ in all else. A field that came later
        # (`bico.methods.settings.ADDED_LATER`) is left out while it has its default, so that what is stored is found.
        given = [f for f in fields(value) if not f.metadata.get("added_later") or getattr(value, f.name) != f.default]
        content = {f.name: _canonical(getattr(value, f.name), f"{where}.{f.name}") for f in given}
        return {"class": type(value).__qualname__, "fields": content}
    raise TypeError(
        f"Key input {where} is a {type(value).__name__}, which has no stable spelling: "
        "use JSON values, enums, dataclasses or Ref; for tensors, the digest of their checkpoint."
    )
