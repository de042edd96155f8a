"""`bico plan`: what a transfer would do, before it does it; and the one line that a run begins with."""

import json
from typing import Any

from flows.commands.watch import duration
from flows.config import Settings, TransferConfig
from flows.planning.disk import bytes_told
from flows.planning.estimate import Estimate, estimate
from flows.planning.forecast import Ahead, look_ahead
from flows.planning.plan import Plan
from flows.planning.rivals import left_out


def forecast(plan: Plan, settings: Settings) -> tuple[Ahead, Estimate]:
    """What a planned transfer will do, and what that will cost."""
    ahead = look_ahead(plan, settings)
    return ahead, estimate(plan, ahead, models_written(plan.config, ahead))


def models_written(config: TransferConfig, ahead: Ahead) -> int:
    return {"none": 0, "all": ahead.vectors}.get(config.export, len(config.carried))


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
    seconds: dict[str, float] = {}
    for stage, one in cost.steps:
        seconds[stage] = seconds.get(stage, 0.0) + one
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
