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

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bico.errors import BicoError
from bico.models.families import spellings
from flows.cache_cli import cache_app
from flows.compare_cli import compare
from flows.options import DataOption, DeviceOption, HomeOption, JsonOption, LossOption, PickleOption
from flows.zoo_cli import zoo_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Carry a fine-tuned skill to a new base model, without training.",
)
app.add_typer(zoo_app, name="zoo")
app.add_typer(cache_app, name="cache")
app.command()(compare)


@app.command()
def demo(
    home: HomeOption = None,
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("out/demo"),
    as_json: JsonOption = False,
) -> None:
    """Transfer experts of zoo:mini-a to zoo:mini-b on the embedded tasks: the thread from end to end."""
    from flows.config import CONFIGS, read_config

    config = read_config(CONFIGS / "demo.yaml", {"out": out})
    run_transfer(config, as_json, home=home)


@app.command()
def transfer(
    config: Annotated[Path | None, typer.Option("--config", help="YAML file; options given here win over it.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help=f"Fine-tuned model's base: {spellings()}."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The new base model.")] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", "--tasks", help="Tasks, comma-separated; `all` for the embedded ones and every --data."),
    ] = None,
    data: DataOption = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated [default: bico,theseus,naive].")] = None,
    samples: Annotated[
        str | None, typer.Option(help="Calibration samples, comma-separated [default: 10,20,50,100].")
    ] = None,
    unlabelled: Annotated[
        int | None, typer.Option(help="Training inputs to use without their labels, beside them [default: 0].")
    ] = None,
    pseudo_labels: Annotated[
        str | None, typer.Option(help="What of the expert stands in for labels: hard or soft [default: hard].")
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option(
            "--baselines/--no-baselines",
            help="Measure what a transfer has to beat at the same data [default: baselines].",
        ),
    ] = None,
    sampling: Annotated[
        str | None, typer.Option(help="How they are chosen, such as class-balanced or per-class [default: random].")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Calibration seeds, comma-separated [default: 0,1,2].")] = None,
    completion: Annotated[str | None, typer.Option(help="partial or svd [default: partial].")] = None,
    loss: LossOption = None,
    expert: Annotated[Path | None, typer.Option(help="Fine-tuned checkpoint of the source (.safetensors).")] = None,
    alpha: Annotated[float | None, typer.Option(help="How much of the task vector is added [default: 1].")] = None,
    test_limit: Annotated[int | None, typer.Option(help="Only the first so many test samples.")] = None,
    export: Annotated[str | None, typer.Option(help="Which models to write: one, all or none [default: one].")] = None,
    register: Annotated[
        str | None, typer.Option(help="Register the written models in MLflow under this name.", metavar="NAME")
    ] = None,
    oracle: Annotated[
        bool | None, typer.Option("--oracle/--no-oracle", help="Fine-tune the target too, for reference.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go [default: out].")] = None,
    home: HomeOption = None,
    device: DeviceOption = None,
    allow_pickle: PickleOption = None,
    memory: Annotated[
        float | None,
        typer.Option(help="GB that calibration may take; it makes several passes where that is too little."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Carry experts of SOURCE over to TARGET and measure what arrived."""
    from flows.config import make_config, read_config

    given: dict[str, Any] = {
        "source": source,
        "target": target,
        "tasks": _tasks(task, data) or ([folder.resolve().name for folder in data] if data and not config else None),
        "data": data or None,
        "methods": _names(methods),
        "samples": _numbers(samples, "--samples"),
        "unlabelled": unlabelled,
        "pseudo_labels": pseudo_labels,
        "baselines": baselines,
        "sampling": sampling,
        "seeds": _numbers(seeds, "--seeds"),
        "completion": completion,
        "loss": loss,
        "expert": expert,
        "alpha": alpha,
        "test_limit": test_limit,
        "export": export,
        "register_as": register,
        "oracle": oracle,
        "out": out,
    }
    given = {key: value for key, value in given.items() if value is not None}
    settled = read_config(config, given) if config else make_config(given, "bico transfer")
    run_transfer(settled, as_json, home=home, device=device, allow_pickle=allow_pickle, memory=memory)


@app.command()
def reproduce(
    recipe: Annotated[
        str | None, typer.Argument(help="A table or figure of the paper, such as table3, or all.")
    ] = None,
    mini: Annotated[bool, typer.Option("--mini", help="In miniature, on the embedded zoo.")] = False,
    data: DataOption = None,
    out: Annotated[Path, typer.Option(help="Where tables and figures go.")] = Path("out/reproduce"),
    list_all: Annotated[bool, typer.Option("--list", help="List all recipes.")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Add what a transfer has to beat, which the paper does not show.")
    ] = False,
    home: HomeOption = None,
    device: DeviceOption = None,
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
    folders, command = data or [], _spelled(f"bico reproduce {recipe}", mini, data)
    recipes = [read_recipe(name) for name in (list_recipes() if recipe == "all" else [recipe])]
    if baselines:
        recipes, command = [r.with_baselines() for r in recipes], f"{command} --baselines"
    if recipe == "all":  # without those whose tasks all want a folder that was not given
        recipes = [r for r in recipes if r.tasks(mini, folders)]

    def work(settings: Any) -> list[Any]:
        done = []
        for r in recipes:
            done.append(reproduce_flow(r, mini, folders, settings, out, command, sys.stderr.isatty()))
            if not as_json:
                print(f"{done[-1].text}\n", flush=True)
        return done

    done = _run(
        work, check=lambda settings: [check(r, mini, folders, settings) for r in recipes], home=home, device=device
    )
    if as_json:
        print(json.dumps([result.to_json() for result in done]))
        return
    for result in done:
        for kind, path in result.outputs.items():
            print(f"{result.recipe} {kind}: {path}")


@app.command()
def claims(
    mini: Annotated[bool, typer.Option("--mini", help="In miniature, on the embedded zoo.")] = False,
    data: DataOption = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder with tables of `bico reproduce`: their rows are taken, other recipes run."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the verdicts go.")] = Path("out/reproduce"),
    home: HomeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test what the paper claims, and say which claims hold and which do not."""
    from flows.catalogue import read_catalogue
    from flows.claims import check_all
    from flows.claims import claims as claims_flow

    catalogue, folders, command = read_catalogue(), data or [], _spelled("bico claims", mini, data)
    command += "" if results is None else " --results RESULTS"
    result = _run(
        lambda settings: claims_flow(catalogue, mini, folders, settings, out, command, sys.stderr.isatty(), results),
        check=lambda settings: check_all(catalogue, mini, folders, settings),
        home=home,
        device=device,
    )
    if as_json:
        print(json.dumps(result.to_json()))
        return
    print(result.text)
    for kind, path in result.outputs.items():
        print(f"\n{kind}: {path}", end="")
    print()


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help=f"{spellings()}.")],
    task: Annotated[str, typer.Option(help="The task.")],
    out: Annotated[Path, typer.Option(help="File for the expert (.safetensors).")],
    data: DataOption = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Warm-up steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Order of the samples.")] = None,
    loss: LossOption = None,
    home: HomeOption = None,
    device: DeviceOption = None,
    allow_pickle: PickleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model's image tower or text encoder on a task: make an expert."""
    from flows.single import finetune_one

    changes = {"steps": steps, "lr": lr, "batch_size": batch_size, "warmup": warmup, "seed": seed}
    changes = {key: value for key, value in changes.items() if value is not None}
    result = _run(
        lambda settings: finetune_one(model, task, data or [], changes, out, settings, sys.stderr.isatty(), loss),
        home=home,
        device=device,
        allow_pickle=allow_pickle,
    )
    _show(result, as_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=f"{spellings()}, such as a transfer writes.")],
    task: Annotated[str, typer.Option(help="Tasks, comma-separated.")],
    data: DataOption = None,
    expert: Annotated[
        Path | None, typer.Option(help="Fine-tuned checkpoint of the model to evaluate in its place.")
    ] = None,
    test_limit: Annotated[int | None, typer.Option(help="Only the first so many test samples.")] = None,
    home: HomeOption = None,
    device: DeviceOption = None,
    allow_pickle: PickleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's accuracy on tasks."""
    from flows.single import evaluate_one

    result = _run(
        lambda settings: evaluate_one(model, _names(task) or [], data or [], expert, test_limit, settings),
        home=home,
        device=device,
        allow_pickle=allow_pickle,
    )
    _show(result, as_json)


def run_transfer(config: Any, as_json: bool, **settings: Any) -> None:
    from flows.plan import make_plan
    from flows.transfer import transfer as transfer_flow

    started = time.perf_counter()
    # Planned once out here, so that a mistake ends in one line and not in a failed flow run.
    result = _run(
        lambda settled: transfer_flow(config, settled, sys.stderr.isatty()),
        check=lambda settled: make_plan(config, settled),
        **settings,
    )
    if as_json:
        print(json.dumps(result.to_json()))
        return
    from bico.reporting.advice import advice
    from bico.reporting.report import markdown_table
    from flows.links import what_was_written, where_to_look

    outputs, stages = result.outputs, result.to_json()["stages"]
    print("\n\n".join([markdown_table(result.rows), *advice(result.rows)]))
    print(
        f"\nStages: {stages['computed']} computed, {stages['cached']} cached, in {time.perf_counter() - started:.0f} s"
    )
    print(f"{what_was_written(outputs)}\n{where_to_look(outputs)}")


def _run(work: Callable[[Any], Any], check: Callable[[Any], Any] = lambda _: None, **settings: Any) -> Any:
    """Runs a flow with settings from options and environment, against a Prefect API."""
    from flows.config import Settings
    from flows.server import prefect_api

    log_to_stderr()
    settled = Settings.from_environment(**settings)
    check(settled)
    with prefect_api():
        return work(settled)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print(f"{row['task']:16} {row['accuracy']:6.2f} %")
    for name, value in result["outputs"].items():
        print(f"{name}: {value}")


def log_to_stderr() -> None:
    """Shows the flows' own lines; Prefect's lines per task go to its API, where its UI shows them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    handler.addFilter(
        lambda record: record.levelno == logging.INFO and not record.getMessage().startswith("Finished in state")
    )
    logging.getLogger("prefect.flow_runs").addHandler(handler)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _tasks(text: str | None, data: list[Path] | None) -> list[str] | None:
    if text is not None and text.strip() == "all":
        from bico.data.tasks import all_tasks

        return all_tasks(data or [])
    return _names(text)


def _spelled(command: str, mini: bool, data: list[Path] | None) -> str:
    """A command as it goes into a report: without the paths of one machine."""
    return " ".join([command, *["--mini"] * mini, *(f"--data DATA/{folder.resolve().name}" for folder in data or [])])


def _numbers(text: str | None, option: str) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        from bico.errors import ConfigError

        raise ConfigError(f"{option} {text}: give whole numbers, separated by commas.") from None


def main() -> None:
    """Entry point: mistakes that the user can mend end in one line and exit code 2."""
    try:
        app()
    except BicoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
