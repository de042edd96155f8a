"""Plain values, as YAML and options hold them, into models that check them; what is wrong with them in one line."""

from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from bico.data.reading import load_words
from bico.errors import ConfigError, nearest

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def validated(model: type[Any], values: dict[str, Any], origin: str) -> Any:
    """Builds a pydantic model; its complaint becomes one line.

    Raises:
        ConfigError: Naming the key, what is wrong, and for an unknown key the nearest valid one.
    """
    try:
        return model(**values)
    except ValidationError as error:
        # A misspelt key is missing under its right name too: the spelling is what to tell.
        first = min(error.errors(), key=lambda found: found["type"] not in _UNKNOWN_KEY)
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] in _UNKNOWN_KEY:
            *place, name = first["loc"]
            raise ConfigError(f"{origin}: unknown key {key!r}; {nearest(str(name), _keys_at(model, place))}") from None
        if first["type"] == "missing":
            raise ConfigError(f"{origin}: {key!r} is missing.") from None
        where = f"{key}={first['input']!r}: " if key else ""
        raise ConfigError(f"{origin}: {where}{first['msg'].removeprefix('Value error, ').rstrip('.')}.") from None


def _keys_at(model: type[Any], place: Iterable[str | int]) -> Iterable[str]:
    """The keys valid at a place inside a model: its own, or those of the model or dataclass that a field holds."""
    for part in place:
        if isinstance(part, str) and part in getattr(model, "model_fields", {}):
            held = _classes(model.model_fields[part].annotation)
            model = next((c for c in held if hasattr(c, "model_fields") or is_dataclass(c)), model)
    fields = model.model_fields if hasattr(model, "model_fields") else model.__dataclass_fields__
    return [name for name in fields if not name.startswith("_")]  # pydantic adds one of its own to dataclasses


def _classes(annotation: Any) -> Iterator[Any]:
    """Every type that an annotation mentions, such as X in `list[X] | None`."""
    yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file of settings.

    Raises:
        ConfigError: If the file is missing, is not YAML, or holds no keys.
    """
    try:
        values = load_words(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings; write `key: value` lines.")
    if strange := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{path}: the key {strange[0]!r} is no text; write `key: value` lines.")
    return values
