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


def export_model(space: Workspace, target: ModelFiles, vector: Ref, alpha: float, folder: Path, task: TaskRef) -> str:
    """Writes the updated target in the format of its family; beside it the task vector, and the classifier that may come
    with it (`bico.evaluation.head_files`), with the names of the task's classes.

    Returns:
        The class of the family's library that loads the model with that classifier; empty if there is none.
    """
    opened, family = open_model(target, space.device), get_family(target.family)
    head, classes = read_linear_head(vector), task.open().class_names
    in_library = getattr(family, "save_classifier", None)
    folder.mkdir(parents=True, exist_ok=True)
    with opened.updated(read_vector(vector), alpha):
        family.save(opened, target, folder)
        loaded_by = in_library(opened, target, folder, head, classes) if in_library and head is not None else ""
    shutil.copyfile(vector_file(vector), folder / EXPORTED_VECTOR)
    save_head(folder, head, classes)
    return loaded_by
