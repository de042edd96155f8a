"""From a spelt part to the frozen dataclass that it names: settings by their fields' types."""

from collections.abc import Mapping
from dataclasses import Field, fields
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypeVar, cast, get_type_hints, runtime_checkable

from bico.errors import ConfigError, UnknownMethodError, nearest
from bico.methods.spec import Part

ADDED_LATER = {"added_later": True}
"""Metadata of a setting that came after results had been stored: keys leave it out while it has its default, so that they
are found."""
OWN = {"own": True}
"""Metadata of a setting whose name is that of one of the run's, and whose meaning is another: the run's does not reach it."""


@runtime_checkable  # beartype checks it in the tests
class HasFields(Protocol):
    """A dataclass, to protocols: its fields are the settings."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


M = TypeVar("M")


def build_part(part: Part, methods: Mapping[str, type[M]], defaults: Mapping[str, Any]) -> M:
    """Returns a method or last step with the settings that its spec gives; types come from the fields of its dataclass.

    Arguments:
        part: Its name and settings, as spelt.
        methods: The table to look in, such as that of methods or of last steps.
        defaults: Settings for methods that have them and do not say themselves.

    Raises:
        UnknownMethodError: If no method has the name.
        ConfigError: If the method has no such setting, the setting cannot have such a value, or it is given twice.
    """
    name, text = part.name, str(part)
    if name not in methods:
        raise UnknownMethodError(f"Unknown method {name!r}: {nearest(name, methods)}")
    method = methods[name]
    hints = get_type_hints(method)
    kinds = {field.name: hints[field.name] for field in fields(cast(type[HasFields], method))}
    given: dict[str, Any] = {}
    for pair in part.given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"Method {text!r}: {pair!r} is no setting; write {name}:key=value.")
        if key not in kinds:
            known = nearest(key, kinds) if kinds else "it has none."
            raise ConfigError(f"Method {text!r}: {name} has no setting {key!r}: {known}")
        if key in given:
            raise ConfigError(f"Method {text!r}: {key} is given twice.")
        given[key] = _value(text, key, value, kinds[key])
    own = {field.name for field in fields(cast(type[HasFields], method)) if field.metadata.get("own")}
    return method(**{key: value for key, value in defaults.items() if key in kinds.keys() - own} | given)


def identity(part: HasFields) -> dict[str, Any]:
    """What of a method's settings enters keys: all, but those that came later only where they are not the default."""
    return {
        field.name: getattr(part, field.name)
        for field in fields(part)
        if not field.metadata.get("added_later") or getattr(part, field.name) != field.default
    }


def _value(text: str, key: str, value: str, kind: type) -> Any:
    choices: dict[str, Any] | None = {"true": True, "false": False} if kind is bool else None
    if issubclass(kind, StrEnum):
        choices = {str(member): member for member in kind}
    if choices is not None:
        if value not in choices:
            raise ConfigError(f"Method {text!r}: {key}={value!r} is not valid: {nearest(value, choices)}")
        return choices[value]
    try:
        return kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"Method {text!r}: {key}={value!r} is not {wanted}.") from None
