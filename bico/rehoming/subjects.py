"""Models and experts from whatever somebody has in hand: references, files, modules, state dictionaries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bico.errors import ConfigError
from bico.models.checkpoints import Checkpoint, read_checkpoint
from bico.models.experts import everything, expert_of
from bico.models.families import foreign_namings
from bico.models.loading import ModelFiles, load, resolve
from bico.models.protocol import Calibratable
from bico.models.wrapped import Loss, Wrapped, wrap
from bico.task_vector import StateDict, subtract

Subject = "str | Path | nn.Module | Calibratable"
Expert = "str | Path | nn.Module | Mapping[str, Tensor]"


@dataclass(frozen=True)
class Opened:
    """A model, and the files that it came from, if it came from files."""

    model: Calibratable
    files: ModelFiles | None = None


def open_subject(given: Any, loss: Loss | None, device: str | torch.device, allow_pickle: bool, what: str) -> Opened:
    """Loads a reference, wraps a module, and takes a model as it is.

    Arguments:
        loss: Of a module, summed over the samples; a model of a family has its own.
        what: How messages call it.

    Raises:
        ConfigError: If it is none of these, or a module comes without a loss.
        BicoError: What `load` and `wrap` raise.
    """
    if isinstance(given, str | Path):
        files = resolve(str(given), allow_pickle)
        return Opened(load(files, device), files)
    if isinstance(given, Wrapped) or (isinstance(given, Calibratable) and not isinstance(given, nn.Module)):
        return Opened(given)
    if isinstance(given, nn.Module):
        if loss is None:
            raise ConfigError(
                f"{what} is a module of your own: give its loss, summed over the samples, such as "
                'loss=nn.CrossEntropyLoss(reduction="sum").'
            )
        return Opened(wrap(given, loss))
    raise ConfigError(
        f"{what} is a {type(given).__name__}: give a reference (zoo:mini-a, a folder, a tag), a torch module, or a wrapped one."
    )


def vector_of(
    expert: Any, source: Opened, allow_pickle: bool, farthest: float | None
) -> tuple[StateDict, tuple[str, ...]]:
    """The source's task vector, and what to tell of how the expert was read.

    Arguments:
        expert: A checkpoint's file or folder, a fine-tuned module, or its full state dictionary, with whatever prefix.
        farthest: Refuse an expert that differs from the source by more than so many norms of its weights.

    Raises:
        CheckpointError: If it cannot be an expert of the source.
        ConfigError: If it is nothing that has weights.
    """
    model = source.model
    if isinstance(expert, str | Path):
        read = read_checkpoint(expert, allow_pickle)
    elif isinstance(expert, nn.Module):
        read = Checkpoint("the expert", expert.state_dict())
    elif isinstance(expert, Mapping) and all(isinstance(tensor, Tensor) for tensor in expert.values()):
        read = Checkpoint("the expert", {name: tensor.detach().cpu() for name, tensor in expert.items()})
    else:
        raise ConfigError(
            f"The expert is a {type(expert).__name__}: give a checkpoint's path, a state dictionary, or a fine-tuned module."
        )
    read = Checkpoint(read.place, {name: tensor.detach().cpu() for name, tensor in read.tensors.items()}, read.notes)
    foreign = () if source.files is None else foreign_namings(source.files.family, everything(model))
    found = expert_of(model, read, foreign, read.place, farthest)
    state = {name: tensor.cpu() for name, tensor in model.state().items()}
    return subtract(found.state, state), found.notes
