"""`bico zoo`: the mini models that ship with the project."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import DataOption, JsonOption, expanded

zoo_app = typer.Typer(no_args_is_help=True, help="The mini models that ship with the project.")


@zoo_app.command("list")
def zoo_list(as_json: JsonOption = False) -> None:
    """List the mini models and what they can do."""
    from bico.models import zoo
    from zoo_build.builders import summary

    manifest = zoo.read_manifest()
    if as_json:
        print(json.dumps(manifest))
        return
    for name, entry in manifest["models"].items():
        print(summary(name, entry))


@zoo_app.command("build")
def zoo_build(
    name: str,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the model.")] = Path("out/zoo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Train for so many steps, and write NAME-STEPS: a weaker model.")
    ] = None,
) -> None:
    """Pre-train one of the mini models from scratch, by its recipe, and measure it (also on DATA).

    A text model also needs the corpus that its recipe names among DATA.
    """
    from flows.pretrain import check, pretrain
    from flows.services.server import prefect_api

    data, out = expanded(data), expanded(out)
    check(name, data or [])  # a name that is not there ends in one line, before a flow run fails
    with prefect_api():
        print(pretrain(name, out / (name if steps is None else f"{name}-{steps}"), data or [], steps=steps))
