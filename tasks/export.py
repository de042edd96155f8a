"""Write a transferred model as a folder that its family's own library loads, or an adapter as PEFT does."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bico.adapters.adapter import Adapter
from bico.adapters.carry import find_in, strengthened
from bico.adapters.files import write_adapter
from bico.adapters.names import paths_of
from bico.evaluation.head_files import save_head
from bico.models.families import get_family
from bico.models.loading import ModelFiles
from storage.keys import Ref
from tasks.artefacts import EXPORTED_VECTOR, carried_adapter, read_linear_head, read_vector, vector_file
from tasks.cached_stage import Workspace
from tasks.inputs import TaskRef, open_model

CARD = "README.md"


def export_model(
    space: Workspace,
    target: ModelFiles,
    vector: Ref,
    alpha: float,
    folder: Path,
    task: TaskRef | None,
    card: Callable[[str], str],
) -> None:
    """Writes the updated target in the format of its family; beside it the task vector, and the classifier that may come
    with it (`bico.evaluation.head_files`), with the names of the task's classes. The folder is there whole or not at all; one
    that was there is replaced.

    Arguments:
        task: None where nothing is known of its classes.
        card: Gives the model card, from the class of the family's library that loads the model with that classifier (empty if
            there is none).
    """
    opened, family = open_model(target, space.device), get_family(target.family)
    head, classes = read_linear_head(vector), () if task is None else task.open().class_names
    in_library = getattr(family, "save_classifier", None)
    with _whole(folder) as unfinished:
        with opened.updated(read_vector(vector), alpha):
            family.save(opened, target, unfinished)
            loaded_by = in_library(opened, target, unfinished, head, classes) if in_library and head is not None else ""
        _share(vector_file(vector), unfinished / EXPORTED_VECTOR)
        save_head(unfinished, head, classes)
        (unfinished / CARD).write_text(card(loaded_by), encoding="utf-8")


def export_adapter(
    space: Workspace,
    target: ModelFiles,
    carried: Ref,
    strength: float,
    folder: Path,
    base: str,
    card: Callable[[Adapter], str],
) -> None:
    """Writes a carried adapter in PEFT's layout; whole or not at all, and in place of what was there.

    Arguments:
        strength: By which its updates are multiplied.
        base: What its configuration calls its base.
        card: Gives its card.
    """
    opened = open_model(target, space.device)
    found = find_in(str(carried_adapter(carried)), opened, target.family)
    made = strengthened(found, strength)
    made = replace(made, config={**made.config, "base_model_name_or_path": base})
    with _whole(folder) as unfinished:
        write_adapter(made, unfinished, set(paths_of(opened, found.state).values()), card(made))


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes the one that was asked for when all is written."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _share(stored: Path, shown: Path) -> None:
    """Gives a stored file a second name instead of a copy, where both lie in one file system. Who writes into it makes the
    store's artefact disagree with its digest, and it is computed anew.
    """
    try:
        shown.hardlink_to(stored)
    except OSError:
        shutil.copyfile(stored, shown)
