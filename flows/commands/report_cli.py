"""`bico report`: the page of a run, made again."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import JsonOption


def report(
    run: Annotated[str, typer.Argument(help="Folder that a transfer wrote (--out), or the id of its run in MLflow.")],
    settings: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page \\[default: the run's own; of a run in MLflow, this one].")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the page of a finished transfer again, from what the run left: no model, no data and no network."""
    from bico.errors import at_home
    from flows.records.results import record_of_run
    from flows.settings import Settings
    from tasks.page import write_page

    folder = at_home(Path(run))
    record = record_of_run(run, Settings.from_environment(**settings))
    where = at_home(out) if out is not None else folder if folder.is_dir() else Path()
    written = write_page(where.absolute(), record)
    print(json.dumps(written) if as_json else f"Page:    {written['page']}")
