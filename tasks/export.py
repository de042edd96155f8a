"""Write a transferred model as a folder that its family's own library loads."""

import shutil
from pathlib import Path

from bico.evaluation.head_files import save_head
from bico.models.families import get_family
from bico.models.loading import ModelFiles
from storage.keys import Ref
from tasks.artefacts import EXPORTED_VECTOR, read_linear_head, read_vector, vector_file
from tasks.cached_stage import Workspace
from tasks.inputs import TaskRef, open_model


def export_model(space: Workspace, target: ModelFiles, vector: Ref, alpha: float, folder: Path, task: TaskRef) -> None:
    """Writes the updated target in the format of its family; beside it the task vector, and the classifier that may come
    with it (`bico.evaluation.head_files`), with the names of the task's classes.
    """
    opened = open_model(target, space.device)
    folder.mkdir(parents=True, exist_ok=True)
    with opened.updated(read_vector(vector), alpha):
        get_family(target.family).save(opened, target, folder)
    shutil.copyfile(vector_file(vector), folder / EXPORTED_VECTOR)
    save_head(folder, read_linear_head(vector), task.open().class_names)
