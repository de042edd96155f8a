"""How a command makes a run: settings, what can be refused beforehand, Prefect's API, and what it tells at the end."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def run_flow(given: dict[str, Any], work: Callable[[Any], Any], check: Callable[[Any], Any]) -> Any:
    """Runs a flow with settings from options and environment, against a Prefect API.

    Arguments:
        check: Raises BicoError for mistakes that can be seen beforehand, so that they end in one line and not in a
            failed flow run.
    """
    from flows.commands.console import log_to_stderr
    from flows.services.server import prefect_api
    from flows.settings import Settings

    log_to_stderr()
    settled = Settings.from_environment(**given)
    check(settled)
    with prefect_api():
        return work(settled)


def run_transfer(config: Any, settings: dict[str, Any], as_json: bool, anew: bool = False) -> None:
    """Makes a transfer and tells what came out.

    Arguments:
        anew: Go the usual way, also if this very run was made before.
    """
    from flows.records import again
    from flows.settings import Settings

    started = time.perf_counter()
    settled = Settings.from_environment(**settings)
    if not anew and (found := again.find(config, settled)) is not None:
        _tell_prefect(config, found.result)
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.made))
        how = (
            f"in {time.perf_counter() - started:.1f} s: this very run was made on {made} (--anew goes through it again)"
        )
        _tell_result(found.result, how, found.disk, as_json)
        return
    from flows.commands.console import log_to_stderr
    from flows.commands.plan_cli import one_line
    from flows.commands.surroundings import BEGAN
    from flows.commands.watch import watching
    from flows.planning.disk import disk_use
    from flows.planning.estimate import forecast
    from flows.planning.plan import make_plan
    from flows.planning.ready import Ready, handed
    from flows.planning.rivals import left_out
    from flows.records.spent import learn
    from flows.services.server import prefect_api
    from flows.transfer import transfer as transfer_flow

    log_to_stderr()
    # Planned out here, so that a mistake ends in one line and not in a failed flow run, and handed to the flow.
    plan = make_plan(config, settled)
    before = again.inputs_of(plan)
    ahead, cost = forecast(plan, settled, BEGAN)
    planned = time.perf_counter()
    print("\n".join(filter(None, (one_line(ahead, cost), left_out(config)))), file=sys.stderr, flush=True)

    ready = Ready(config, settled, plan, cost, BEGAN)
    with prefect_api(), watching(sum(ahead.totals.values()), cost.steps), handed(ready):
        result = transfer_flow(config, settled)
    learn(settled, cost, result.outputs["record"], time.perf_counter() - planned)
    disk = disk_use(settled, result)
    again.keep(plan, settled, result, before, disk)
    _tell_result(result, f"in {time.perf_counter() - BEGAN:.0f} s", disk, as_json)


def _tell_result(result: Any, how: str, disk: dict[str, int], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_json()))
        return
    from bico.reporting.advice import advice
    from bico.reporting.measures import measures_table, with_measures
    from bico.reporting.tables import markdown_table
    from flows.commands.links import what_was_written, where_to_look
    from flows.planning.disk import told

    outputs, stages = result.outputs, result.to_json()["stages"]
    rows = with_measures(result.rows, outputs.get("measures", {}))
    print("\n\n".join([markdown_table(rows), *filter(None, [measures_table(rows)]), *advice(rows)]))
    print(f"\nStages: {stages['computed']} computed, {stages['cached']} cached, {how}")
    print(f"Disk:    {told(disk)}")
    print(f"{what_was_written(outputs)}\n{where_to_look(outputs)}")


def _tell_prefect(config: Any, result: Any) -> None:
    """Leaves a repetition in Prefect, where an API is configured: one of its own would be started for nothing."""
    from flows.commands.links import prefect_is_configured

    if not prefect_is_configured():
        return
    from bico.reporting.tables import markdown_table
    from flows.records.found_again import found_again
    from flows.services.server import prefect_api

    with prefect_api():
        before = result.outputs["prefect"]["flow_run"]
        found_again(config.title, before, markdown_table(result.rows), return_state=True)
