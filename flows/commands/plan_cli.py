"""`bico plan`: what a transfer would do, before it does it; and the one line that a run begins with."""

import json
from typing import Any

import typer

from bico.errors import BicoError
from flows.commands.console import log_to_stderr
from flows.commands.surroundings import BEGAN
from flows.commands.watch import duration
from flows.config import TransferConfig
from flows.planning.costs import Estimate
from flows.planning.disk import bytes_told
from flows.planning.estimate import forecast
from flows.planning.forecast import Ahead
from flows.planning.plan import Plan, make_plan
from flows.planning.rivals import left_out
from flows.settings import Settings


def one_line(ahead: Ahead, cost: Estimate) -> str:
    """What a run says before it begins."""
    counts = ahead.totals
    return (
        f"Plan: {counts['computed']} stages to compute and {counts['cached']} found, {cost.passes} passes of a sample, about "
        f"{duration(cost.seconds)}, {bytes_told(cost.memory)} of memory, {bytes_told(cost.store + cost.results)} on the disk"
        f"{f' and {bytes_told(cost.passing)} there in passing' if cost.passing else ''}."
    )


def as_record(plan: Plan, ahead: Ahead, cost: Estimate) -> dict[str, Any]:
    """A plan as plain values, as `--json` prints it. Times in seconds, sizes in bytes."""
    seconds = cost.by_stage
    stages = {stage: counts | {"seconds": round(seconds.get(stage, 0.0), 2)} for stage, counts in ahead.stages.items()}
    return {
        "stages": ahead.totals | {"by_stage": stages},
        "passes": cost.passes,
        "seconds": round(cost.seconds, 1),
        "memory": cost.memory,
        "disk": {"store": cost.store, "results": cost.results, "passing": cost.passing},
        "cells": ahead.rows,
        "methods": [str(spec) for spec in plan.methods],
        "notes": [*plan.notes],
        "left_out": left_out(plan.config),
        "refused": [],
    }


def show(plan: Plan, ahead: Ahead, cost: Estimate, as_json: bool) -> None:
    """Prints a plan."""
    found = as_record(plan, ahead, cost)
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", title=f"{plan.config.title}", title_justify="left")
    for name in ("to compute", "found", "about"):
        table.add_column(name, justify="right")
    for stage, counts in found["stages"]["by_stage"].items():
        about = duration(counts["seconds"]) if counts["computed"] else "-"
        table.add_row(stage, str(counts["computed"]), str(counts["cached"]), about)
    console = Console()
    console.print(table)
    lines = [
        one_line(ahead, cost),
        f"It measures {ahead.rows} cells of {', '.join(found['methods'])}.",
        *found["notes"],
        found["left_out"],
        "Nothing is refused. Nothing was computed or written.",
    ]
    console.print("\n".join(filter(None, lines)), markup=False, highlight=False)


def tell_plan(config: TransferConfig, settings: dict[str, Any], as_json: bool) -> None:
    """Prints a plan; of one that is refused the reason, and exits with code 2."""
    log_to_stderr()
    settled = Settings.from_environment(**settings)
    try:
        made = make_plan(config, settled)
        ahead, cost = forecast(made, settled, BEGAN)
    except BicoError as error:
        if not as_json:
            raise
        print(json.dumps({"refused": [str(error)]}))
        raise typer.Exit(2) from None
    show(made, ahead, cost, as_json)
