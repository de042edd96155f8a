"""The command line `bico`."""

import os

# Before anything imports Prefect, MLflow or Dask: no telemetry unless asked for, and a log that people can read.
for _name, _value in {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
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
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from bico.errors import BicoError
from bico.models.families import spellings
from flows.commands.cache_cli import cache_app
from flows.commands.compare_cli import compare
from flows.commands.merge_cli import merge
from flows.commands.options import SETTINGS, DataOption, Fields, JsonOption, command, whole_names
from flows.commands.rehome_cli import FIELDS as REHOMED
from flows.commands.rehome_cli import rehome
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
command(app, settings=SETTINGS)(compare)
command(app, settings=SETTINGS)(report)
command(app, settings=SETTINGS)(merge)
command(app, given=REHOMED, settings=SETTINGS)(rehome)

LOSS = Fields("TransferConfig", only=("loss",))
READ = Fields(
    "TransferConfig",
    only=("image_column", "label_column", "text_columns", "prompts", "class_names", "test_share", "test_seed"),
    panel="How --data is read",
)


CALIBRATES = (
    *("source", "target", "tasks", "data", "image_column", "label_column", "text_columns", "prompts", "class_names"),
    *("test_share", "test_seed", "methods", "samples", "sampling", "seeds", "loss", "completion", "rank", "between"),
    *("pooling", "batch_size"),
)
"""What of a transfer a calibration depends on."""


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


@command(app, settings=SETTINGS)
def demo(
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("out/demo"),
    as_json: JsonOption = False,
) -> None:
    """Transfer experts of zoo:mini-a to zoo:mini-b on the embedded tasks: the thread from end to end."""
    from flows.config import CONFIGS, read_config

    run_transfer(read_config(CONFIGS / "demo.yaml", {"out": out}), settings, as_json)


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


ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file; options given here win over it.")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="BiCo with 50 samples and one draw, on 1000 test samples, and no rivals.")
]
FullOption = Annotated[bool, typer.Option("--full", help="With all rivals, and the target fine-tuned for reference.")]


@command(app, given=Fields("TransferConfig"), settings=SETTINGS)
def transfer(
    given: dict[str, Any],
    settings: dict[str, Any],
    config: ConfigOption = None,
    quick: QuickOption = False,
    full: FullOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would do, as `bico plan` does.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Go through all stages, also if this very run was made before.")
    ] = False,
    pack: Annotated[
        Path | None, typer.Option(help="Carry with what `bico calibrate --pack` left there, without the data.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Carry experts of SOURCE over to TARGET and measure what arrived."""
    if pack is not None:
        from flows.commands.pack_cli import transfer_packed

        transfer_packed(
            pack, given, settings, {"config": config, "quick": quick, "full": full, "dry-run": dry_run}, as_json
        )
        return
    asked = asked_for(given, settings, config, quick, full)
    if dry_run:
        tell_plan(asked, settings, as_json)
    else:
        run_transfer(asked, settings, as_json, anew)


@command(app, given=Fields("TransferConfig"), settings=SETTINGS)
def plan(
    given: dict[str, Any],
    settings: dict[str, Any],
    config: ConfigOption = None,
    quick: QuickOption = False,
    full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what `bico transfer` would do: stages to compute and found, time, memory, disk, and what is refused."""
    tell_plan(asked_for(given, settings, config, quick, full), settings, as_json)


@command(
    app,
    given=Fields("TransferConfig", only=CALIBRATES),
    settings=SETTINGS,
)
def calibrate(
    given: dict[str, Any],
    settings: dict[str, Any],
    pack: Annotated[Path, typer.Option(help="Folder for the pack.")],
    config: ConfigOption = None,
    small_pack: Annotated[
        bool, typer.Option("--small-pack", help="Also with so few samples that a pack may expose them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Calibrate a pair and leave what maps need, and nothing of the data, to carry experts with elsewhere."""
    from flows.commands.pack_cli import make_pack

    asked = asked_for(given | {"rivals": "none", "oracle": False, "export": "none", "out": pack}, settings, config)
    make_pack(asked, settings, pack, small_pack, as_json)


def asked_for(
    given: dict[str, Any],
    settings: dict[str, Any],
    config: Path | None = None,
    quick: bool = False,
    full: bool = False,
) -> Any:
    """The transfer that options and a file ask for: of what differs, options win, then a preset, then the file.

    Raises:
        ConfigError: If they make none.
    """
    from bico.errors import ConfigError
    from flows.config import PRESETS, make_config, read_config
    from flows.planning.experts import tasks_named

    if quick and full:
        raise ConfigError("--quick and --full are opposites: give one of them.")
    given = (PRESETS["quick"] if quick else PRESETS["full"] if full else {}) | given
    look_early((given.get("source"), given.get("target")), experts_of(given), settings)
    data = given.get("data", [])
    if given.get("tasks") == ["all"]:
        from bico.data.tasks import all_tasks

        given["tasks"] = all_tasks(data)
    elif "tasks" in given:
        given["tasks"] = whole_names(given["tasks"], names_of(data))
    elif data and not config and not tasks_named(given.get("experts", [])):
        given["tasks"] = names_of(data)
    return read_config(config, given) if config else make_config(given, "bico transfer")


def experts_of(given: dict[str, Any]) -> list[Path]:
    """The files and folders of experts among options."""
    from flows.planning.experts import parse

    return [parse(text)[1] for text in given.get("experts", [])]


def tell_plan(config: Any, settings: dict[str, Any], as_json: bool) -> None:
    """Prints a plan; of one that is refused the reason, and exits with code 2."""
    from flows.commands.console import log_to_stderr
    from flows.commands.plan_cli import forecast, show
    from flows.config import Settings
    from flows.planning.plan import make_plan

    log_to_stderr()
    settled = Settings.from_environment(**settings)
    try:
        made = make_plan(config, settled)
        ahead, cost = forecast(made, settled)
    except BicoError as error:
        if not as_json:
            raise
        print(json.dumps({"refused": [str(error)]}))
        raise typer.Exit(2) from None
    show(made, ahead, cost, as_json)


@command(app, settings=SETTINGS)
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

    done = _run(settings, work, check=look)
    if as_json:
        print(json.dumps([result.to_json() for result in done]))
        return
    for result in done:
        for kind, path in result.outputs.items():
            print(f"{result.recipe} {kind}: {path}")


@command(app, settings=SETTINGS)
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
    result = _run(
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


@command(app, recipe=Fields("FinetuneConfig", tell_defaults=False), posed=LOSS, read=READ, settings=SETTINGS)
def finetune(
    model: Annotated[str, typer.Argument(help=f"{spellings()}.")],
    task: Annotated[str, typer.Option(help="The task.")],
    out: Annotated[Path, typer.Option(help="File for the expert (.safetensors).")],
    recipe: dict[str, Any],
    posed: dict[str, Any],
    read: dict[str, Any],
    settings: dict[str, Any],
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model's image tower or text encoder on a task: make an expert.

    How it is trained depends on the model's size, unless options say otherwise.
    """
    from flows.single import finetune_one, plan_finetune

    asked, loss = (model, task, data or [], recipe, out), posed.get("loss")
    result = _run(
        settings,
        lambda settled: finetune_one(*asked, settled, sys.stderr.isatty(), loss, read),
        check=lambda settled: plan_finetune(*asked, settled, loss, read),
    )
    _show(result, as_json)


@command(app, posed=LOSS, read=READ, settings=SETTINGS)
def evaluate(
    model: Annotated[str, typer.Argument(help=f"{spellings()}, such as a transfer writes.")],
    task: Annotated[str, typer.Option("--task", "--tasks", help="Tasks, comma-separated.")],
    posed: dict[str, Any],
    read: dict[str, Any],
    settings: dict[str, Any],
    data: DataOption = None,
    expert: Annotated[
        Path | None, typer.Option(help="Fine-tuned checkpoint of the model to evaluate in its place.")
    ] = None,
    expert_head: Annotated[
        Path | None, typer.Option(help="Linear classifier of the model's features, in place of the task's own head.")
    ] = None,
    test_limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many test samples.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's accuracy on tasks."""
    look_early([model], [expert] if expert else [], settings)
    from flows.single import evaluate_one, plan_evaluate

    parts = [name.strip() for name in task.split(",") if name.strip()]
    names = whole_names(parts, names_of(data or []))
    asked, loss = (model, names, data or [], expert), posed.get("loss")
    result = _run(
        settings,
        lambda settled: evaluate_one(*asked, test_limit, settled, read, expert_head, loss),
        check=lambda settled: plan_evaluate(*asked, settled, read, expert_head, loss),
    )
    _show(result, as_json)


def look_early(models: Iterable[str | None], experts: Iterable[Path], settings: dict[str, Any]) -> None:
    """Raises CheckpointError if names and first bytes of files tell that a model or an expert cannot be read: before
    anything that takes seconds to import.
    """
    from bico.adapters.folder import find_expert
    from bico.models.families import look_at

    said = settings.get("allow_pickle") or os.environ.get("BICO_ALLOW_PICKLE", "")
    allowed = str(said).lower() in ("1", "true", "yes", "on")
    for expert in experts:
        find_expert(expert, allowed)
    for ref in models:
        if ref is not None:
            look_at(ref, allowed)


def run_transfer(config: Any, settings: dict[str, Any], as_json: bool, anew: bool = False) -> None:
    """Makes a transfer and tells what came out.

    Arguments:
        anew: Go the usual way, also if this very run was made before.
    """
    from flows.config import Settings
    from flows.records import again

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
    from flows.commands.plan_cli import forecast, one_line
    from flows.commands.watch import watching
    from flows.planning.disk import disk_use
    from flows.planning.plan import make_plan
    from flows.planning.rivals import left_out
    from flows.services.server import prefect_api
    from flows.transfer import transfer as transfer_flow

    log_to_stderr()
    # Planned once out here, so that a mistake ends in one line and not in a failed flow run.
    plan = make_plan(config, settled)
    before = again.inputs_of(plan)
    ahead, cost = forecast(plan, settled)
    print("\n".join(filter(None, (one_line(ahead, cost), left_out(config)))), file=sys.stderr, flush=True)

    with prefect_api(), watching(sum(ahead.totals.values()), cost.steps):
        # The flow plans again, when other memory may be free.
        how = settled.model_copy(update={"blockwise": "always" if plan.source.blockwise else "never"})
        result = transfer_flow(config, how)
    disk = disk_use(settled, result)
    again.keep(plan, settled, result, before, disk)
    _tell_result(result, f"in {time.perf_counter() - started:.0f} s", disk, as_json)


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


def _run(given: dict[str, Any], work: Callable[[Any], Any], check: Callable[[Any], Any]) -> Any:
    """Runs a flow with settings from options and environment, against a Prefect API.

    Arguments:
        check: Raises BicoError for mistakes that can be seen beforehand, so that they end in one line and not in a
            failed flow run.
    """
    from flows.commands.console import log_to_stderr
    from flows.config import Settings
    from flows.services.server import prefect_api

    log_to_stderr()
    settled = Settings.from_environment(**given)
    check(settled)
    with prefect_api():
        return work(settled)


def names_of(data: list[Path]) -> list[str]:
    """Names of the tasks that folders of data hold."""
    from bico.data.tasks import folders_by_task

    return list(folders_by_task(data))


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print(f"{row['task']:16} {row['accuracy']:6.2f} %   by: {row['by']}")
    for name, value in result["outputs"].items():
        print(f"{name}: {value}")


def _spelled(command: str, mini: bool, data: list[Path] | None) -> str:
    """A command as it goes into a report: without the paths of one machine."""
    return " ".join([command, *["--mini"] * mini, *(f"--data DATA/{folder.resolve().name}" for folder in data or [])])


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
