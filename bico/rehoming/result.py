"""What a transfer in memory gives: numbers, the task vector, the updated model, and files of it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bico.errors import ConfigError, OutputError, at_home
from bico.evaluation.head_files import save_head
from bico.evaluation.linear_head import LinearHead
from bico.models.families import get_family
from bico.models.wrapped import Wrapped
from bico.rehoming.subjects import Opened
from bico.reporting.rows import Row
from bico.reporting.tables import markdown_table
from bico.task_vector import StateDict

VECTOR, MODEL = "task-vector.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Result:
    """An expert that has moved."""

    vector: StateDict
    """The target's task vector, by its parameters' names; strength included."""
    rows: tuple[Row, ...]
    """Test accuracies, in percent; none where there was nothing to measure on."""
    head: LinearHead | None
    """The classifier that a method ends in, if it ends in one."""
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    """What was taken for granted, and what to think about."""
    target: Opened
    """As it was: it is never changed."""

    @property
    def table(self) -> str:
        """The rows in Markdown; empty if there are none."""
        return markdown_table(self.rows) if self.rows else ""

    def __str__(self) -> str:
        return "\n".join([*self.notes, *([self.table] if self.rows else [])])

    @property
    def model(self) -> Any:
        """The updated target, a copy, in eval mode with frozen weights: a module where a module was given, else a model of its
        family (`features`, `logits`, `prepare`).
        """
        updated: Any = copy.deepcopy(self.target.model)
        state = updated.state()
        with torch.no_grad():
            for name, tensor in self.vector.items():
                state[name].add_(tensor.to(state[name]))
        return updated.module if isinstance(updated, Wrapped) else updated

    def save(self, folder: str | Path) -> Path:
        """Writes the updated target and the task vector into a new folder and returns it: in the format of the target's family,
        or for a module its state as `model.safetensors`.

        Raises:
            OutputError: If there is something in the folder already, or it cannot be written.
            ConfigError: If the target was given as an opened model of a family, which does not say how it is saved.
        """
        place = at_home(Path(folder))
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise OutputError(f"{place} is there already and not empty: give a new folder.")
        target: Any = self.target.model
        if self.target.files is None and not isinstance(target, Wrapped):
            raise ConfigError(
                f"{target.name} was given opened: give the target by its reference to save it, or save `vector`."
            )
        try:
            place.mkdir(parents=True, exist_ok=True)
            if self.target.files is not None:
                with target.updated(self.vector):
                    get_family(self.target.files.family).save(target, self.target.files, place)
            else:
                _save(place / MODEL, self.model.state_dict())
            _save(place / VECTOR, self.vector)
            save_head(place, self.head, self.class_names)
        except OSError as error:
            raise OutputError(f"Cannot write to {place} ({error.strerror}): choose another folder.") from error
        return place


def _save(path: Path, state: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # Copies, for tied tensors share memory, which the format does not hold.
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, path)
