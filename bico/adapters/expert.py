"""An adapter where an expert is asked for: its base with it merged in, as any other checkpoint of a fine-tuned model."""

from pathlib import Path

import torch
from torch import Tensor

from bico.adapters.dense import Formed, merged
from bico.adapters.files import read_adapter, read_tensors
from bico.adapters.folder import CONFIG, check_files, is_adapter
from bico.adapters.names import Located, locate
from bico.errors import CheckpointError
from bico.models.checkpoints import Checkpoint, canonical, read_checkpoint
from bico.models.experts import everything
from bico.models.families import foreign_namings
from bico.models.protocol import Calibratable, Model, weights_of
from bico.task_vector import norm


def read_weights(place: str | Path, model: Model, family: str, allow_pickle: bool = False) -> Checkpoint:
    """Reads what was fine-tuned from a model: a checkpoint, or an adapter merged into the model.

    Raises:
        CheckpointError: If files are missing, damaged, or pickles that are not allowed; or an adapter is not read here, or not
            of this model.
    """
    if not is_adapter(place):
        return read_checkpoint(place, allow_pickle)
    adapter = read_adapter(place)
    found = locate(adapter, model, foreign_namings(family, everything(model)))
    notes = [*adapter.notes, *found.notes]
    notes.append(f"{place}: a LoRA adapter of {len(adapter.updates)} modules, merged into {model.name}.")
    if found.strangers:
        notes.append(
            f"{place}: a head that was trained with it is left out ({', '.join(found.strangers[:3])}): give it as --expert-head, or "
            "one is fitted."
        )
    if adapter.base and Path(adapter.base).name != Path(model.name).name:
        notes.append(f"{place} names {adapter.base} as its base; it is taken as an adapter of {model.name}.")
    return Checkpoint(str(place), merged(found), tuple(notes))


def check_near(found: Located, model: Calibratable, farthest: float) -> float:
    """Returns by how much an adapter changes the first block that it changes, in norms of the maps that it changes there: of a
    model that is read block by block, this stands for the whole.

    Raises:
        CheckpointError: If it is more than `farthest`.
    """
    formed, weights = Formed(found, model.state()), weights_of(model)
    of_block: dict[str, set[str]] = {}
    for site in model.sites:
        if site.weight.parameter in formed:
            of_block.setdefault(site.group, set()).add(site.weight.parameter)
    names = next(iter(of_block.values()), set())
    change, size = (norm({name: tensors[name] for name in names}) for tensors in (formed, weights))
    if names and change > farthest * size:
        raise CheckpointError(
            f"{found.adapter.place} changes {next(iter(of_block))} of {model.name} by {change / size:.2g} times the norm of its weights, "
            f"where fine-tuning changes them by less than {farthest:g}: it looks like an adapter of another model (or raise "
            "--expert-farthest, if it is one)."
        )
    return change / size if names else 0.0


def content_of(place: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """What determines an expert's weights, beside its model: tensors, and of an adapter what its configuration says of them."""
    if not is_adapter(place):
        return canonical(read_checkpoint(place, allow_pickle).tensors)
    folder = check_files(place)
    said = torch.frombuffer(bytearray((folder / CONFIG).read_bytes()), dtype=torch.uint8)
    return {**read_tensors(folder), CONFIG: said}
