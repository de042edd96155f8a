"""Write a transferred model as a folder that its family's own library loads."""

import shutil
from pathlib import Path

from bico.models.families import get_family
from bico.models.loading import ModelFiles
from storage.checkpoints import load_state
from tasks.cached_stage import Done, Workspace
from tasks.inputs import open_model
from tasks.last_steps import LINEAR_HEAD
from tasks.transfer import VECTOR


def export_model(space: Workspace, target: ModelFiles, vector: Done, alpha: float, folder: Path) -> None:
    """Writes the updated target in the format of its family, and the task vector beside it."""
    opened = open_model(target, space.device)
    folder.mkdir(parents=True, exist_ok=True)
    with opened.updated(load_state(vector.ref.path / VECTOR), alpha):
        get_family(target.family).save(opened, target, folder)
    shutil.copyfile(vector.ref.path / VECTOR, folder / VECTOR.replace("task_vector", "task-vector"))
    if (vector.ref.path / LINEAR_HEAD).exists():
        shutil.copyfile(vector.ref.path / LINEAR_HEAD, folder / LINEAR_HEAD)
