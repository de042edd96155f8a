"""`bico merge`: carried experts put together."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import JsonOption


def merge(
    places: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that transfers wrote (--out), or of models in them.")
    ],
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option(help="Where the model, a table and its record go.")] = Path("out/merged"),
    how: Annotated[str, typer.Option(metavar="sum|ties", help="Task arithmetic, or TIES.")] = "sum",
    density: Annotated[
        float, typer.Option(help="Of TIES, the share of each vector's entries, the largest, that is looked at.")
    ] = 0.2,
    strengths: Annotated[
        str,
        typer.Option(
            metavar="NUMBER,...|auto", help="One for all or one each; auto: by the samples that calibrated them."
        ),
    ] = "auto",
    test_limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many test samples.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Put carried experts together into one model, and measure it on the task of each."""
    from bico.errors import ConfigError, nearest
    from bico.reporting.merged import MergedRow, merged_table
    from bico.task_vector.merging import Merging
    from flows.commands.console import log_to_stderr
    from flows.merge import merge_flow, plan_merge
    from flows.services.server import prefect_api
    from flows.settings import Settings

    if how not in {one.value for one in Merging}:
        raise ConfigError(f"--how {how}: {nearest(how, [one.value for one in Merging])}")
    if not 0 < density <= 1:
        raise ConfigError(f"--density {density}: give a share above 0 and not above 1.")
    by = None if strengths == "auto" else _numbers(strengths)
    settled = Settings.from_environment(**settings)
    log_to_stderr()
    plan_merge(places, out, by, settled)
    with prefect_api():
        result = merge_flow(places, out, Merging(how), density, by, settled, test_limit)
    if as_json:
        print(json.dumps(result))
        return
    print(merged_table([MergedRow(**row) for row in result["rows"]]))
    outputs = result["outputs"]
    for name in ("model", "table", "record"):
        print(f"{name}: {outputs[name]}")
    print(f"MLflow: run {outputs['mlflow']['run']}")


def _numbers(text: str) -> list[float]:
    from math import isfinite

    from bico.errors import ConfigError

    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(isfinite, found)):
        raise ConfigError(f"--strengths {text}: give numbers, separated by commas, or auto.")
    return found
