"""`bico reproduce` and `bico claims`: the paper's tables and figures, and what it claims."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import DataOption, JsonOption
from flows.commands.run import run_flow


def reproduce(
    settings: dict[str, Any],
    recipe: Annotated[
        str | None, typer.Argument(help="A table or figure of the paper, such as table3, or all.")
    ] = None,
    mini: Annotated[bool, typer.Option("--mini", help="In miniature, on the embedded zoo.")] = False,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Where tables and figures go.")] = Path("out/reproduce"),
    list_all: Annotated[bool, typer.Option("--list", help="List all recipes.")] = False,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", "--rivals", help="Add what a transfer has to beat, which the paper does not show."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a table or figure of the paper, beside the paper's numbers."""
    from bico.errors import ConfigError
    from flows.recipes import list_recipes, read_recipe
    from flows.reproduce import check
    from flows.reproduce import reproduce as reproduce_flow

    if list_all:
        recipes = [read_recipe(name) for name in list_recipes()]
        if as_json:
            print(json.dumps([{"id": r.id, "title": r.title, "sides": r.sides} for r in recipes]))
            return
        for r in recipes:
            print(f"{r.id:9} {', '.join(r.sides):11} {r.title}")
        return
    if recipe is None:
        raise ConfigError("Name a recipe, or `all`; `bico reproduce --list` shows them.")
    folders, spelt = data or [], _spelled(f"bico reproduce {recipe}", mini, data)
    recipes = [read_recipe(name) for name in (list_recipes() if recipe == "all" else [recipe])]
    if baselines:
        recipes, spelt = [r.with_baselines() for r in recipes], f"{spelt} --baselines"
    if recipe == "all":  # without those whose tasks all want a folder that was not given
        recipes = [r for r in recipes if r.tasks(mini, folders)]

    def look(settled: Any) -> None:
        for r in recipes:
            check(r, mini, folders, settled)

    def work(settled: Any) -> list[Any]:
        done = []
        for r in recipes:
            done.append(reproduce_flow(r, mini, folders, settled, out, spelt, sys.stderr.isatty()))
            if not as_json:
                print(f"{done[-1].text}\n", flush=True)
        return done

    done = run_flow(settings, work, check=look)
    if as_json:
        print(json.dumps([result.to_json() for result in done]))
        return
    for result in done:
        for kind, path in result.outputs.items():
            print(f"{result.recipe} {kind}: {path}")


def claims(
    settings: dict[str, Any],
    mini: Annotated[bool, typer.Option("--mini", help="In miniature, on the embedded zoo.")] = False,
    data: DataOption = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder with tables of `bico reproduce`: their rows are taken, other recipes run."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the verdicts go.")] = Path("out/reproduce"),
    as_json: JsonOption = False,
) -> None:
    """Test what the paper claims, and say which claims hold and which do not."""
    from flows.catalogue import read_catalogue
    from flows.claims import check_all
    from flows.claims import claims as claims_flow

    catalogue, folders, spelt = read_catalogue(), data or [], _spelled("bico claims", mini, data)
    spelt += "" if results is None else " --results RESULTS"
    result = run_flow(
        settings,
        lambda settled: claims_flow(catalogue, mini, folders, settled, out, spelt, sys.stderr.isatty(), results),
        check=lambda settled: check_all(catalogue, mini, folders, settled),
    )
    if as_json:
        print(json.dumps(result.to_json()))
        return
    print(result.text)
    for kind, path in result.outputs.items():
        print(f"\n{kind}: {path}", end="")
    print()


def _spelled(command: str, mini: bool, data: list[Path] | None) -> str:
    """A command as it goes into a report: without the paths of one machine."""
    return " ".join([command, *["--mini"] * mini, *(f"--data DATA/{folder.resolve().name}" for folder in data or [])])
