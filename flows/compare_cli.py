"""`bico compare`: is the new release better?"""

import json
from typing import Annotated, Any

import typer

from flows.options import JsonOption


def compare(
    run_a: Annotated[str, typer.Argument(help="The first run: MLflow run id, folder with results.csv, or a CSV file.")],
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
    from flows.config import Settings
    from flows.results import rows_of

    settled = Settings.from_environment(**settings)
    found = compared(rows_of(run_a, settled), rows_of(run_b, settled), method, margin)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    print(f"first:  {run_a}\nsecond: {run_b}\n\n{comparison_table(found)}\n\n{found.sentence}")
