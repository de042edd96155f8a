"""Two small flows: make one expert, measure one model."""

import shutil
from pathlib import Path
from typing import Any

from prefect import flow

from bico.errors import ConfigError, OutputError
from bico.finetune import default_config
from bico.models.loading import resolve
from flows.config import Settings
from flows.plan import check_writable, pose
from storage.artefacts import folder_of
from tasks.cached_stage import Done, Workspace, result_of
from tasks.evaluate import evaluate_model, read_accuracy
from tasks.finetune import EXPERT, adopt_expert, finetune_model
from tasks.inputs import TaskRef, open_model
from tasks.probe import probe_model


@flow(name="finetune", flow_run_name="{model}-on-{task}", validate_parameters=False)
def finetune_one(
    model: str,
    task: str,
    data: list[Path],
    changes: dict[str, Any],
    out: Path,
    settings: Settings,
    progress: bool = False,
    loss: str | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model on a task, writes what it has changed (the image tower, or the encoder's blocks) and tells the
    expert's test accuracy.
    """
    space, files, ref = _open(model, [task], data, settings, loss)
    recipe = default_config(sum(p.numel() for p in open_model(files, space.device).trainable()))
    recipe = type(recipe)(**vars(recipe) | changes)
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder: give a file name ending in .safetensors.")
    check_writable(out.expanduser().absolute().parent)
    done = result_of(finetune_model, space, files, ref[task], recipe, progress)
    shutil.copyfile(folder_of(done.ref) / EXPERT, out)
    measured = _measure(space, files, ref[task], done)
    return _result([(task, measured)], {"expert": str(out.absolute())}, [done, measured])


@flow(name="evaluate", flow_run_name="{model}", validate_parameters=False)
def evaluate_one(
    model: str, tasks: list[str], data: list[Path], expert: Path | None, limit: int | None, settings: Settings
) -> dict[str, Any]:
    """Measures a model, or an expert of it, on tasks: by its own head, or of text by a probe on all training samples."""
    if not tasks:
        raise ConfigError("--task names no task.")
    space, files, refs = _open(model, tasks, data, settings)
    weights = None if expert is None else result_of(adopt_expert, space, files, str(expert))
    measured = [(name, _measure(space, files, refs[name], weights, limit)) for name in tasks]
    return _result(measured, {}, [done for _, done in measured])


def _measure(space: Workspace, files: Any, task: TaskRef, weights: Done | None, limit: int | None = None) -> Done:
    if open_model(files, space.device).probed:
        return result_of(probe_model, space, files, task, weights, 1.0, None, limit)
    return result_of(evaluate_model, space, files, task, weights, 1.0, limit)


def _open(
    model: str, tasks: list[str], data: list[Path], settings: Settings, loss: str | None = None
) -> tuple[Workspace, Any, dict[str, TaskRef]]:
    folders = tuple(str(Path(folder).expanduser().resolve()) for folder in data)
    refs = {name: TaskRef(name, folders) for name in tasks}
    for ref in refs.values():
        ref.open()
    files = resolve(model, settings.allow_pickle)
    check_writable(settings.home)
    space = Workspace(settings.store, settings.resolved_device(), allow_pickle=settings.allow_pickle)
    opened = open_model(files, space.device)
    return space, files, {name: pose(ref, opened, loss) for name, ref in refs.items()}


def _result(measured: list[tuple[str, Done]], outputs: dict[str, Any], stages: list[Done]) -> dict[str, Any]:
    return {
        "rows": [{"task": name, "accuracy": read_accuracy(done)} for name, done in measured],
        "outputs": outputs,
        "stages": {"computed": sum(not d.cached for d in stages), "cached": sum(d.cached for d in stages)},
    }
