"""How a folder of data is read: what options and `task.yaml` say, and which of them wins.

An option wins over `task.yaml`, that over what the folder's name stands for (a benchmark's prompts, a known form of text),
and that over what the table itself says.
"""

import dataclasses
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bico.errors import ConfigError, nearest, one_line

TASK_FILE = "task.yaml"


@dataclass(frozen=True)
class Reading:
    """What was said about a folder; what was not is found in the folder."""

    image_column: str | None = None
    """The column of pictures."""
    label_column: str | None = None
    """The column of classes."""
    text_columns: tuple[str, ...] = ()
    """The columns of text that the model is shown, in this order."""
    prompts: tuple[str, ...] = ()
    """Of pictures: templates with one `{}` for the class name. Of texts: one, with the columns' names in braces."""
    class_names: tuple[str, ...] | tuple[tuple[str, str], ...] = ()
    """What the classes are called: a name for each in their order, or pairs (as found, as shown)."""
    test_share: float | None = None
    """The share of a single split that is kept for testing."""
    test_seed: int = 0
    """Seed of that draw."""
    test_split: str | None = None
    """The split to measure on, where it is not `test`."""

    @property
    def said(self) -> dict[str, Any]:
        """What differs from the defaults."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {f.name: found[f.name] for f in dataclasses.fields(self) if found[f.name] != f.default}

    def over(self, other: "Reading") -> "Reading":
        """This, and the other's where this says nothing."""
        return dataclasses.replace(other, **self.said)

    @property
    def renamed(self) -> dict[str, str]:
        """The pairs of `class_names`; empty where they are a list."""
        return dict(pair for pair in self.class_names if isinstance(pair, tuple))

    @property
    def listed(self) -> tuple[str, ...]:
        """The names of `class_names` that are no pairs."""
        return tuple(name for name in self.class_names if isinstance(name, str))


NOTHING_SAID = Reading()
KEYS = tuple(f.name for f in dataclasses.fields(Reading))


def make_reading(values: Mapping[str, Any], origin: str) -> Reading:
    """Builds a reading from plain values, as options and YAML give them.

    Arguments:
        values: By field; lists may be single texts, and `class_names` a mapping.
        origin: Where they come from, for messages.

    Raises:
        ConfigError: If a key is unknown or a value has no meaning.

    Example:
        >>> make_reading({"prompts": "a {}", "class_names": {"0": "cat"}}, "here").said
        {'prompts': ('a {}',), 'class_names': (('0', 'cat'),)}
    """
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{origin}: unknown key {key!r}; {nearest(str(key), KEYS)}")
    given = {key: value for key, value in values.items() if value not in (None, [], {}, ())}
    made: dict[str, Any] = {key: _texts(key, given[key], origin) for key in ("text_columns", "prompts") if key in given}
    if "class_names" in given:
        made["class_names"] = _class_names(given["class_names"], origin)
    for key in ("image_column", "label_column", "test_split"):
        if key in given:
            made[key] = str(given[key])
    if "test_share" in given:
        made["test_share"] = _share(given["test_share"], origin)
    if "test_seed" in given:
        if not isinstance(given["test_seed"], int) or given["test_seed"] < 0:
            raise ConfigError(f"{origin}: test_seed={given['test_seed']!r} must be a whole number of 0 or more.")
        made["test_seed"] = given["test_seed"]
    return Reading(**made)


def _texts(key: str, value: Any, origin: str) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) and one.strip() for one in values):
        raise ConfigError(f"{origin}: {key}={value!r} must be a text, or a list of texts.")
    return tuple(dict.fromkeys(values)) if key == "text_columns" else tuple(values)


def _class_names(value: Any, origin: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple) and all(isinstance(one, str) and "=" in one for one in value):
        value = dict(one.split("=", 1) for one in value)
    if isinstance(value, list | tuple | Mapping) and None in (
        *value,
        *(value.values() if isinstance(value, Mapping) else ()),
    ):
        raise ConfigError(f"{origin}: class_names has an empty name: write one, in quotes where it is null or ~.")
    if isinstance(value, Mapping):  # YAML reads 0: and yes: as numbers and truth
        return tuple((_plain_text(found), _plain_text(shown)) for found, shown in value.items())
    if isinstance(value, list | tuple):
        return tuple(_plain_text(one) for one in value)
    raise ConfigError(f"{origin}: class_names={value!r} must be a list of names, or a mapping from the names found.")


def _plain_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _share(value: Any, origin: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{origin}: test_share={value!r} must lie between 0 and 1, such as 0.2.")
    return float(value)


def read_task_file(folder: Path) -> Reading:
    """Reads `task.yaml` beside the data; nothing, if there is none.

    Raises:
        ConfigError: If it is no YAML, or has an unknown key or a value without meaning.
    """
    path = (folder if folder.is_dir() else folder.parent) / TASK_FILE
    if not path.is_file():
        return Reading()
    import yaml  # comes with `datasets`

    try:
        values = load_words(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {one_line(error)}.") from error
    if values is None:
        return Reading()
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings; write `key: value` lines with {', '.join(KEYS)}.")
    return make_reading(values, str(path))


@cache
def load_words(text: str) -> Any:
    """Reads YAML as data, as `yaml.safe_load` does, but yes, no, on and off are the words that a class may be called.

    Raises:
        yaml.YAMLError: If it is no YAML, or asks for objects of Python.

    Example:
        >>> load_words("{0: no, 1: yes, sure: true}")
        {0: 'no', 1: 'yes', 'sure': True}
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    kept = {"t", "T", "f", "F"}  # true and false stay what they are
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    Loader.yaml_implicit_resolvers = {
        first: [one for one in known if first in kept or one[0] != "tag:yaml.org,2002:bool"]
        for first, known in resolvers.items()
    }
    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def check_templates(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Returns the prompts of a task of pictures.

    Raises:
        ConfigError: Unless each has one `{}`.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(f"{where}: the prompt {template!r} needs one {{}} where the class name goes.")
    return templates


@dataclass(frozen=True)
class TextPrompt:
    """A prompt of texts by position, `{0}` and `{1}`, and the columns that stand there."""

    form: str
    columns: tuple[str, ...] = field(default=())


def text_prompt(prompts: tuple[str, ...], columns: tuple[str, ...], where: str) -> TextPrompt:
    """Takes a prompt of texts apart: `{text}`, or `{}` where there is one column, or `{0}`; `{{` is a brace.

    Raises:
        ConfigError: If there are several prompts, or a brace holds something else or a column that is not there.

    Example:
        >>> text_prompt(("{b}, then {a}",), ("a", "b"), "here").form
        '{1}, then {0}'
    """
    if len(prompts) > 1:
        raise ConfigError(f"{where}: texts are put once, and {len(prompts)} prompts are given: keep one.")
    valid, form = ", ".join(f"{{{column}}}" for column in columns), ""
    try:
        parts = list(string.Formatter().parse(prompts[0]))
    except ValueError as error:
        raise ConfigError(f"{where}: the prompt {prompts[0]!r}: {error}; write {{{{ for a brace.") from None
    used = 0
    for literal, name, spec, conversion in parts:
        form += literal.replace("{", "{{").replace("}", "}}")
        if name is None:
            continue
        place = columns.index(name) if name in columns else int(name) if name.isdecimal() else len(columns)
        place = 0 if name == "" and len(columns) == 1 else place
        if place >= len(columns) or spec or conversion:
            raise ConfigError(f"{where}: the prompt {prompts[0]!r} has {{{name}}}; the columns of text are {valid}.")
        form, used = f"{form}{{{place}}}", used + 1
    if not used:
        raise ConfigError(f"{where}: the prompt {prompts[0]!r} shows no text; put {valid} into it.")
    return TextPrompt(form, columns)
