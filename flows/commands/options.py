"""Options of commands, made from the fields of the models that they fill: a new setting is one edit, in its model."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from bico.errors import ConfigError, at_home

F = TypeVar("F", bound=Callable[..., None])

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")
]
DataOption = Annotated[
    list[Path] | None, typer.Option("--data", help="Folder of data, or a table; its name is the task's; repeatable.")
]


@dataclass(frozen=True, init=False)
class Option:
    """Said of a field, as in `Annotated[str, Option("--task", "--tasks")]`: how its option differs from the usual one."""

    names: tuple[str, ...]
    """Instead of the field's own name; of a yes or no, both spellings: --x/--no-x."""
    metavar: str | None
    """What stands for the value in the help; by default the type, or the values that there are."""
    default: str | None
    """How the default is told, if not as the value itself."""
    whole: bool
    """Of a list, whether each value is given by itself, commas and all, and the option repeated."""
    words: tuple[str, ...]
    """Of a number, words that may stand in its place."""

    def __init__(
        self,
        *names: str,
        metavar: str | None = None,
        default: str | None = None,
        whole: bool = False,
        words: tuple[str, ...] = (),
    ) -> None:
        given = {"names": names, "metavar": metavar, "default": default, "whole": whole, "words": words}
        for key, value in given.items():
            object.__setattr__(self, key, value)


class OnlyInFiles:
    """Said of a field, as in `Annotated[X, OnlyInFiles]`: YAML can hold it, an option cannot."""


@dataclass(frozen=True)
class Field:
    """What an option needs to know of a field."""

    name: str
    type: Any
    """Without what `Annotated` adds, and without `| None`."""
    help: str
    default: Any
    option: Option

    @property
    def many(self) -> bool:
        return get_origin(self.type) is list

    @property
    def choices(self) -> list[str]:
        """The values that an enumeration or a `Literal` allows."""
        if isinstance(self.type, type) and issubclass(self.type, Enum):
            return [str(member.value) for member in self.type]
        return [str(value) for value in get_args(self.type)] if get_origin(self.type) is Literal else []

    @property
    def many_choices(self) -> bool:
        """Whether the choices are too long to stand in the column of types."""
        return len("|".join(self.choices)) > 24

    @property
    def taken_as(self) -> Any:
        """The type that the command line reads: choices, lists and numbers that may be words are read as text, so that the model tells what is
        wrong with them, in one line.

        Raises:
            TypeError: If a field has a type that no option can hold, and does not say that it is `OnlyInFiles`.
        """
        if self.option.words:
            return str
        if self.type in (bool, int, float, str, Path) or self.type == list[Path] or self.option.whole:
            return self.type
        if self.many or self.choices:
            return str
        raise TypeError(f"{self.name}: no option holds {self.type}; mark the field as OnlyInFiles.")

    @property
    def names(self) -> tuple[str, ...]:
        own = self.name.replace("_", "-")
        return self.option.names or ((f"--{own}/--no-{own}",) if self.type is bool else (f"--{own}",))

    @property
    def metavar(self) -> str | None:
        if self.option.words and not self.option.metavar:
            return "|".join(["NUMBER", *self.option.words])
        if self.option.metavar or not (self.choices or self.many):
            return self.option.metavar
        if self.choices:
            return "|".join(self.choices) if not self.many_choices else "NAME"
        return {list[Path]: "PATH", list[str]: "NAME,..."}.get(self.type, "N,...")

    @property
    def shown_default(self) -> str:
        """The default as it would be typed; empty if there is none."""
        if self.option.default is not None:
            return self.option.default
        if self.type is bool:
            yes, no = self.names[0].removeprefix("--").split("/--")
            return yes if self.default else no
        values = self.default if isinstance(self.default, list) else [self.default]
        return ",".join(str(v.value if isinstance(v, Enum) else v) for v in values if v not in (None, ""))

    def read(self, given: Any) -> Any:
        """Returns what was typed as the model takes it.

        Raises:
            ConfigError: If something is no whole number where numbers are listed.
        """
        if not (self.many and isinstance(given, str)):
            return given
        parts = [part.strip() for part in given.split(",") if part.strip()]
        (item,) = get_args(self.type)
        if get_args(item):  # Annotated[int, ...]
            item = get_args(item)[0]
        if item is not int:
            return parts
        try:
            return [int(part) for part in parts]
        except ValueError:
            raise ConfigError(f"{self.names[0]} {given}: give whole numbers, separated by commas.") from None


@dataclass(frozen=True)
class Fields:
    """The fields of a model that a command takes as options."""

    model: str | type
    """A pydantic model or dataclass; or where one is, as `module:Name`, imported when a command needs it: it may bring
    PyTorch, for which `bico --help` should not wait."""
    only: tuple[str, ...] = ()
    """These fields; by default all."""
    panel: str | None = None
    """The heading in the help."""
    variables: str = ""
    """The beginning of the environment variables that give the fields too."""
    tell_defaults: bool = True

    @cached_property
    def found(self) -> dict[str, Field]:
        model = resolve_name(self.model) if isinstance(self.model, str) else self.model
        fields = {field.name: field for field in fields_of(model)}
        return {name: fields[name] for name in self.only or fields}

    def parameters(self) -> Iterator[inspect.Parameter]:
        """One parameter per field, as Typer reads it; None where nothing is given."""
        for field in self.found.values():
            option = typer.Option(
                *field.names, help=self.help(field), metavar=field.metavar, rich_help_panel=self.panel
            )
            annotation = Annotated[field.taken_as | None, option]
            yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def help(self, field: Field) -> str:
        default = f"default: {field.shown_default}" if self.tell_defaults and field.shown_default else ""
        variable = f"{self.variables}{field.name.upper()}" if self.variables else ""
        choices = ", ".join(field.choices) if field.many_choices else ""
        repeatable = "repeatable" if get_origin(field.taken_as) is list else ""
        notes = "; ".join(note for note in (choices, repeatable, default, variable) if note)
        text = f"{field.help} [{notes}]" if notes else field.help
        return text.replace("[", r"\[")  # else Rich takes it for a style

    def collect(self, values: dict[str, Any]) -> dict[str, Any]:
        """Takes the fields out of a command's arguments and returns those that were given."""
        taken = {name: values.pop(name) for name in self.found}
        return {name: self.found[name].read(value) for name, value in taken.items() if value not in (None, [])}


def fields_of(model: type) -> Iterator[Field]:
    """The fields of a pydantic model or dataclass that can have options.

    Raises:
        TypeError: If a field has no docstring, or a type that no option can hold.
    """
    texts = _docstrings(model)
    hints = get_type_hints(model, include_extras=True)
    for name, default in _defaults(model).items():
        kind, said = _bare(hints[name])
        if OnlyInFiles in said:
            continue
        if name not in texts:
            raise TypeError(f"{model.__name__}.{name} has no docstring, which would be its option's help.")
        option = next((part for part in said if isinstance(part, Option)), Option())
        field = Field(name, kind, texts[name], default, option)
        field.taken_as  # noqa: B018  # raises
        yield field


def _defaults(model: type) -> dict[str, Any]:
    """The fields' names and defaults, None where there is none."""
    if dataclasses.is_dataclass(model):
        nothing = dataclasses.MISSING
        return {f.name: None if f.default is nothing else f.default for f in dataclasses.fields(model)}
    fields = model.model_fields  # type: ignore[attr-defined]
    return {name: None if f.is_required() else f.get_default(call_default_factory=True) for name, f in fields.items()}


def _docstrings(model: type) -> dict[str, str]:
    """What is said of each field, on one line: its docstring, or the description that stands in for it."""
    if not dataclasses.is_dataclass(model):
        fields = model.model_fields  # type: ignore[attr-defined]  # of a pydantic model
        return {name: " ".join(f.description.split()) for name, f in fields.items() if f.description}
    found: dict[str, str] = {}
    for cls in filter(dataclasses.is_dataclass, reversed(model.__mro__)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        for line, below in pairwise(tree.body):  # type: ignore[attr-defined]
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(line, ast.AnnAssign) and isinstance(text, str):
                found[ast.unparse(line.target)] = " ".join(text.split())
    return found


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without `Annotated` and `| None` around it, and what `Annotated` said."""
    said: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            said += tuple(more)
        elif get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
            others = [part for part in get_args(annotation) if part is not NoneType]
            if len(others) > 1:
                return annotation, said
            (annotation,) = others
        else:
            return annotation, said


def command(app: typer.Typer, name: str | None = None, **models: Fields) -> Callable[[F], F]:
    """Registers a command, of which some parameters are filled from options made of a model's fields.

    Arguments:
        models: By parameter, the fields that it collects: a dictionary of those that were given.
    """

    def register(function: F) -> F:
        class WithFields(TyperCommand):
            """Knows its options when somebody asks for them: when it is called, or its own help is."""

            def get_params(self, ctx: Any) -> Any:
                if not self.params:
                    whole = typer.Typer(add_completion=False)
                    whole.command()(with_fields(function, models))
                    made = typer.main.get_command(whole)
                    self.params, self.callback = made.params, made.callback
                return super().get_params(ctx)

        def known_by_name() -> None:
            raise AssertionError("replaced before it is called")

        known_by_name.__doc__ = function.__doc__
        app.command(name or function.__name__, cls=WithFields)(known_by_name)
        return function

    return register


def with_fields(function: Callable[..., None], models: dict[str, Fields]) -> Callable[..., None]:
    """Returns the function with one keyword per field in the place of each parameter that a model fills."""

    def called(**values: Any) -> None:
        values = {name: expanded(value) for name, value in values.items()}
        collected = {name: fields.collect(values) for name, fields in models.items()}
        function(**values, **collected)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        parameters += models[parameter.name].parameters() if parameter.name in models else own
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__doc__ = function.__doc__
    return called


def expanded(value: Any) -> Any:
    """Returns an option's value with `~` expanded, if it is a path or a list of them: behind an equals sign no shell does."""
    if isinstance(value, list):
        return [expanded(one) for one in value]
    return at_home(value) if isinstance(value, Path) else value


def whole_names(parts: list[str], names: Iterable[str]) -> list[str]:
    """Returns names that were separated by commas, where some may have commas of their own.

    Arguments:
        parts: What stands between the commas.
        names: Names that may be among them whole, such as those of folders that were given.

    Example:
        >>> whole_names(["digits", "roses", "red", "lamps"], ["roses, red"])
        ['digits', 'roses, red', 'lamps']
    """
    whole = {tuple(part.strip() for part in name.split(",")): name for name in names if "," in name}
    found: list[str] = []
    while parts:
        taken = next((pieces for pieces in whole if tuple(parts[: len(pieces)]) == pieces), (parts[0],))
        found.append(whole.get(taken, taken[0]))
        parts = parts[len(taken) :]
    return found


SETTINGS = Fields("flows.settings:Settings", panel="Where it runs and what is kept", variables="BICO_")
STORE = dataclasses.replace(SETTINGS, only=("home", "store"))
RECORDS = dataclasses.replace(SETTINGS, only=("home", "store", "mlflow_uri", "experiment"))
