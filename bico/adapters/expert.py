"""An adapter where an expert is asked for: its base with it merged in, as any other checkpoint of a fine-tuned model."""

from pathlib import Path

import torch
from torch import Tensor

from bico.adapters.dense import merged
from bico.adapters.files import read_adapter, read_tensors
from bico.adapters.folder import CONFIG, check_files, is_adapter
from bico.adapters.names import locate
from bico.models.checkpoints import Checkpoint, canonical, read_checkpoint
from bico.models.experts import everything
from bico.models.families import foreign_namings
from bico.models.protocol import Model


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


def content_of(place: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """What determines an expert's weights, beside its model: tensors, and of an adapter what its configuration says of them."""
    if not is_adapter(place):
        return canonical(read_checkpoint(place, allow_pickle).tensors)
    folder = check_files(place)
    said = torch.frombuffer(bytearray((folder / CONFIG).read_bytes()), dtype=torch.uint8)
    return {**read_tensors(folder), CONFIG: said}
