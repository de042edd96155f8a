"""`bico compare`: is the new release better?"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import JsonOption


def by_name(run: str, settings: Any) -> str:
    """The id of a run that is named; a file, a folder or an id as it is.

    Raises:
        StoreError: If no finished transfer is called so.
    """
    if Path(run).expanduser().exists() or "/" in run or re.fullmatch("[0-9a-f]{32}", run):
        return run
    if settings.mlflow_uri is None and not (settings.home / "mlflow.db").exists():
        return run  # whoever reads it says so
    from storage.runs import find_run
    from tasks.record import open_tracker

    return find_run(open_tracker(settings), run)


def compare(
    run_a: Annotated[
        str,
        typer.Argument(
            help="The first run: a folder with results.csv, a CSV file, or MLflow's run by id, name or words of it."
        ),
    ],
    run_b: Annotated[str, typer.Argument(help="The second, say of the new release.")],
    settings: dict[str, Any],
    method: Annotated[
        str | None, typer.Option(help="The method that the answer is about \\[default: the first in both runs].")
    ] = None,
    margin: Annotated[float, typer.Option(help="Points by which the second must exceed the first.")] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Compare two transfers cell by cell and say whether the second is better.

    Paired deltas per task, N and seed, in points, with their spread and a paired test over tasks.
    """
    from bico.reporting.compare import compare as compared
    from bico.reporting.compare import comparison_table
    from flows.records.results import rows_of
    from flows.settings import Settings

    settled = Settings.from_environment(**settings)
    first, second = (rows_of(by_name(run, settled), settled) for run in (run_a, run_b))
    found = compared(first, second, method, margin)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    print(f"first:  {run_a}\nsecond: {run_b}\n\n{comparison_table(found)}\n\n{found.sentence}")
