"""Two small flows: make one expert, measure one model."""

import shutil
from pathlib import Path
from typing import Any

from prefect import flow

from bico.errors import ConfigError, OutputError
from bico.finetune import default_config
from bico.models.loading import resolve
from flows.config import Settings
from flows.plan import check_writable
from tasks.evaluate import evaluate_model, read_accuracy
from tasks.finetune import EXPERT, adopt_expert, finetune_model
from tasks.stage import Done, TaskRef, Workspace, open_model, result_of


@flow(name="finetune", flow_run_name="{model}-on-{task}", validate_parameters=False)
def finetune_one(
    model: str,
    task: str,
    data: list[Path],
    changes: dict[str, Any],
    out: Path,
    settings: Settings,
    progress: bool = False,
) -> dict[str, Any]:
    """Fine-tunes a model on a task, writes the expert's image tower and tells its test accuracy."""
    space, files, ref = _open(model, [task], data, settings)
    recipe = default_config(sum(p.numel() for p in open_model(files, space.device).trainable()))
    recipe = type(recipe)(**vars(recipe) | changes)
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder: give a file name ending in .safetensors.")
    check_writable(out.expanduser().absolute().parent)
    done = result_of(finetune_model, space, files, ref[task], recipe, progress)
    shutil.copyfile(done.ref.path / EXPERT, out)
    measured = result_of(evaluate_model, space, files, ref[task], done)
    return _result([(task, measured)], {"expert": str(out.absolute())}, [done, measured])


@flow(name="evaluate", flow_run_name="{model}", validate_parameters=False)
def evaluate_one(
    model: str, tasks: list[str], data: list[Path], expert: Path | None, limit: int | None, settings: Settings
) -> dict[str, Any]:
    """Measures a model, or an expert of it, on tasks."""
    if not tasks:
        raise ConfigError("--task names no task.")
    space, files, refs = _open(model, tasks, data, settings)
    weights = None if expert is None else result_of(adopt_expert, space, files, str(expert))
    measured = [(name, result_of(evaluate_model, space, files, refs[name], weights, 1.0, limit)) for name in tasks]
    return _result(measured, {}, [done for _, done in measured])


def _open(
    model: str, tasks: list[str], data: list[Path], settings: Settings
) -> tuple[Workspace, Any, dict[str, TaskRef]]:
    folders = tuple(str(Path(folder).expanduser().resolve()) for folder in data)
    refs = {name: TaskRef(name, folders) for name in tasks}
    for ref in refs.values():
        ref.open()
    files = resolve(model, settings.allow_pickle)
    check_writable(settings.home)
    space = Workspace(settings.store, settings.resolved_device(), allow_pickle=settings.allow_pickle)
    open_model(files, space.device)
    return space, files, refs


def _result(measured: list[tuple[str, Done]], outputs: dict[str, Any], stages: list[Done]) -> dict[str, Any]:
    return {
        "rows": [{"task": name, "accuracy": read_accuracy(done)} for name, done in measured],
        "outputs": outputs,
        "stages": {"computed": sum(not d.cached for d in stages), "cached": sum(d.cached for d in stages)},
    }
