"""Write a transferred model as a folder that its family's own library loads."""

import shutil
from pathlib import Path

from bico.models.families import get_family
from bico.models.loading import ModelFiles
from storage.keys import Ref
from tasks.artefacts import EXPORTED_VECTOR, LINEAR_HEAD, linear_head_file, read_vector, vector_file
from tasks.cached_stage import Workspace
from tasks.inputs import open_model


def export_model(space: Workspace, target: ModelFiles, vector: Ref, alpha: float, folder: Path) -> None:
    """Writes the updated target in the format of its family, and the task vector beside it."""
    opened = open_model(target, space.device)
    folder.mkdir(parents=True, exist_ok=True)
    with opened.updated(read_vector(vector), alpha):
        get_family(target.family).save(opened, target, folder)
    shutil.copyfile(vector_file(vector), folder / EXPORTED_VECTOR)
    if (head := linear_head_file(vector)) is not None:
        shutil.copyfile(head, folder / LINEAR_HEAD)
