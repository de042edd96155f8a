"""Command-line options are made of the settings' models: every field has one, and names that scripts use stay."""

from dataclasses import fields as dataclass_fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict

from bico.finetune import FinetuneConfig
from flows.cli import app
from flows.commands.options import Fields, OnlyInFiles, Option, command
from flows.config import TransferConfig
from flows.settings import Settings


def options_of(*path: str) -> set[str]:
    """All names that a command takes."""
    found = typer.main.get_command(app)
    context = typer.Context(found)
    for name in path:
        found = found.commands[name]
        context = typer.Context(found, parent=context)
    return {name for option in found.get_params(context) for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize(
    ("path", "models"),
    [
        (["transfer"], [TransferConfig, Settings]),
        (["demo"], [Settings]),
        (["reproduce"], [Settings]),
        (["claims"], [Settings]),
        (["compare"], [Settings]),
        (["finetune"], [Settings, FinetuneConfig]),
        (["evaluate"], [Settings]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_every_field_of_a_model_has_its_option(path: list[str], models: list[Any]) -> None:
    odd = {
        "tasks": "--task",
        "prompts": "--prompt",
        "register_as": "--register",
        "finetune": None,
        "expert": None,
        "experts": "--expert",
    }
    fields = {
        name
        for model in models
        for name in getattr(model, "model_fields", None) or [f.name for f in dataclass_fields(model)]
    }
    expected = {odd.get(name, f"--{name.replace('_', '-')}") for name in fields} - {None}
    assert len(expected) >= 9 and expected <= options_of(*path)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            ["transfer"],
            "--config --source --target --task --tasks --data --methods --samples --unlabelled --pseudo-labels --baselines "
            "--no-baselines --rivals --no-rivals --sampling --seeds --completion --loss --expert --expert-farthest --alpha --test-limit "
            "--export --register --oracle --no-oracle --out --home --device --allow-pickle --memory --json",
        ),
        (["finetune"], "--task --out --data --steps --lr --batch-size --warmup --seed --loss --allow-pickle --json"),
        (["evaluate"], "--task --data --expert --test-limit --home --device --allow-pickle --json"),
        (["reproduce"], "--mini --data --out --list --baselines --rivals --home --device --json"),
        (["cache", "gc"], "--home --store --older-than --run --keep-reachable --dry-run --json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_that_scripts_use_stay(path: list[str], names: str) -> None:
    assert set(names.split()) <= options_of(*path)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Sketch(BaseModel):
    """A model as settings are, with a field of every kind."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    counts: list[int] = [1, 2]
    """How
    many."""
    names: Annotated[list[str], Option("--name", "--names")] = []
    """Who."""
    colour: Colour = Colour.RED
    """In which colour."""
    size: Literal["small", "large"] | None = None
    """How large."""
    folders: list[Path] = []
    """Where."""
    signed: bool = True
    """Whether the artist signs."""
    inner: Annotated[dict[str, int], OnlyInFiles] = {}


class Drawing(Sketch):
    """One field more."""

    line_width: float = 0.5
    """How thick, in mm."""


def drawn(arguments: list[str], fields: Fields) -> dict[str, Any]:
    """What a command that takes the fields is given."""
    seen: list[dict[str, Any]] = []
    made = typer.Typer(add_completion=False)

    @command(made, given=fields)
    def draw(given: dict[str, Any]) -> None:
        """Draw."""
        seen.append(given)

    made(arguments, standalone_mode=False)
    return seen[0] if seen else {}


def test_a_field_that_is_added_to_a_model_is_an_option_and_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.TyperException, match="line-width"):
        drawn(["--line-width", "2"], Fields(Sketch))
    given = drawn(["--line-width", "2", "--counts", "3, 4", "--no-signed", "--names", "ann,bob"], Fields(Drawing))
    assert given == {"line_width": 2.0, "counts": [3, 4], "signed": False, "names": ["ann", "bob"]}
    assert Drawing(**given).line_width == 2.0
    assert drawn(["--folders", "a", "--folders", "b,c"], Fields(Drawing)) == {"folders": [Path("a"), Path("b,c")]}
    assert drawn([], Fields(Drawing)) == {}  # what is not given leaves a file's value as it is


def test_help_is_the_docstring_with_choices_and_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    drawn(["--help"], Fields(Drawing, variables="DRAW_"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "N,... How many. [default: 1,2; DRAW_COUNTS]" in shown
    assert "red|blue In which colour. [default: red; DRAW_COLOUR]" in shown
    assert "small|large How large. [DRAW_SIZE]" in shown
    assert "inner" not in shown


def test_a_field_that_no_option_can_hold_or_explain_is_an_error_of_the_program() -> None:
    class Mute(BaseModel):
        width: int = 1

    class Nested(BaseModel):
        model_config = ConfigDict(use_attribute_docstrings=True)
        inner: Sketch
        """A model."""

    with pytest.raises(TypeError, match=r"Mute\.width has no docstring"):
        drawn([], Fields(Mute))
    with pytest.raises(TypeError, match="inner: no option holds"):
        drawn([], Fields(Nested))
