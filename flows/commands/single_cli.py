"""`bico finetune` and `bico evaluate`: one model, one step."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bico.models.families import spellings
from flows.commands.asked import look_early, names_of
from flows.commands.options import DataOption, Fields, JsonOption, whole_names
from flows.commands.run import run_flow

FINETUNE = Fields("bico.finetune:FinetuneConfig", tell_defaults=False)
POSED = Fields("flows.config:TransferConfig", only=("loss", "pooling"))
READ = Fields(
    "flows.config:TransferConfig",
    only=("image_column", "label_column", "text_columns", "prompts", "class_names", "test_share", "test_seed"),
    panel="How --data is read",
)


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

    asked, (loss, pooling) = (model, task, data or [], recipe, out), (posed.get("loss"), posed.get("pooling"))
    result = run_flow(
        settings,
        lambda settled: finetune_one(*asked, settled, sys.stderr.isatty(), loss, read, pooling),
        check=lambda settled: plan_finetune(*asked, settled, loss, read, pooling),
    )
    _show(result, as_json)


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
    asked, (loss, pooling) = (model, names, data or [], expert), (posed.get("loss"), posed.get("pooling"))
    result = run_flow(
        settings,
        lambda settled: evaluate_one(*asked, test_limit, settled, read, expert_head, loss, pooling),
        check=lambda settled: plan_evaluate(*asked, settled, read, expert_head, loss, pooling),
    )
    _show(result, as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print(f"{row['task']:16} {row['accuracy']:6.2f} %   by: {row['by']}")
    for name, value in result["outputs"].items():
        print(f"{name}: {value}")
