"""The command line `bico`."""

import os

# Before anything imports Prefect, MLflow or Dask: no telemetry unless asked for, and a log that people can read.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # no line per database table
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "DASK_LOGGING__DISTRIBUTED": "error",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "120s",  # a busy machine is not a lost one
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "120s",
    # Looks at itself a thousand times a second would cost scheduler and worker 3 % of a core each.
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "false",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
    # Dask has workers give memory back at once, for which every temporary of a map is fetched anew, page by page.
    "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": "{'MALLOC_TRIM_THRESHOLD_': None}",
}.items():
    os.environ.setdefault(_name, _value)

from flows.commands import surroundings

surroundings.prepare()

import dataclasses
import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from bico.errors import BicoError
from flows.commands import paper_cli, rehome_cli, single_cli, transfer_cli
from flows.commands.cache_cli import cache_app
from flows.commands.compare_cli import compare
from flows.commands.merge_cli import merge
from flows.commands.options import SETTINGS, Fields, JsonOption, command
from flows.commands.report_cli import report
from flows.commands.zoo_cli import zoo_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Carry a fine-tuned skill to a new base model, without training.",
)
app.add_typer(zoo_app, name="zoo")
app.add_typer(cache_app, name="cache")

TRANSFER = Fields("flows.config:TransferConfig")

command(app, settings=SETTINGS)(transfer_cli.demo)
command(app, given=TRANSFER, settings=SETTINGS)(transfer_cli.transfer)
command(app, given=TRANSFER, settings=SETTINGS)(transfer_cli.plan)
command(app, given=transfer_cli.CALIBRATES, settings=SETTINGS)(transfer_cli.calibrate)
command(app, given=rehome_cli.FIELDS, settings=SETTINGS)(rehome_cli.rehome)
command(app, settings=SETTINGS)(merge)
command(app, settings=SETTINGS)(compare)
command(app, settings=SETTINGS)(report)
command(app, recipe=single_cli.FINETUNE, posed=single_cli.POSED, read=single_cli.READ, settings=SETTINGS)(
    single_cli.finetune
)
command(app, posed=single_cli.POSED, read=single_cli.READ, settings=SETTINGS)(single_cli.evaluate)
command(app, settings=SETTINGS)(paper_cli.reproduce)
command(app, settings=SETTINGS)(paper_cli.claims)


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """List the methods: which pairs each serves, what it needs, and where it comes from."""
    from bico.methods import METHODS

    found = [
        {
            "name": method.name,
            "label": method.label,
            "serves": str(method.serves),
            "needs": sorted(map(str, [*method().needs.signals, *method().needs.gradients])),
            "settings": {field.name: field.default for field in dataclasses.fields(method)},
            "reference": method.reference,
        }
        for method in METHODS.values()
    ]
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        needs = ", ".join(one["needs"]) or "no samples"
        print(f"{one['name']:14} serves {one['serves']:22} needs {needs:22} {one['reference']}")


def _tell_versions(asked: bool) -> None:
    if not asked:
        return
    for package in ("bico", "torch"):
        try:
            print(package, version(package))
        except PackageNotFoundError:
            print(package, "(not installed)")
    raise typer.Exit


@app.callback()
def _of_all_commands(
    versions: Annotated[
        bool,
        typer.Option("--version", help="Print the versions of bico and torch.", callback=_tell_versions, is_eager=True),
    ] = False,
) -> None:
    pass


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells and Typer have it."""


def _same_again() -> str:
    """The command that was given, as it would be typed."""
    return shlex.join(["bico", *sys.argv[1:]])


def main() -> None:
    """Entry point: mistakes that the user can mend end in one line and exit code 2."""
    surroundings.write_what_can_be_written(sys.stdout, sys.stderr)
    try:
        code = app(standalone_mode=False)
    except (BicoError, typer.TyperException) as error:
        said = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if said:  # else the help was printed, for want of arguments
            print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:
        print(f"stopped. Finished stages are kept: `{_same_again()}` goes on from there.", file=sys.stderr)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
