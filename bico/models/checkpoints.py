"""Checkpoints as people have them: the tensors at a place, by whatever names they were saved with.

`weight_files` says which files are read, `checkpoint_names` what the names mean to a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bico.errors import CheckpointError
from bico.models.families import find_weights
from bico.models.pickles import read_pickle
from bico.models.weight_files import WeightFiles, is_pickle, refuse_adapter_names, refuse_pickle, refuse_pointer


@dataclass(frozen=True)
class Checkpoint:
    """What was read at a place."""

    place: str
    tensors: Mapping[str, Tensor]
    """In the dtypes that they were stored in, on the CPU; whether they are finite has not been looked at."""
    notes: tuple[str, ...] = ()
    """What a reader should know of how it was read."""


def read_checkpoint(place: str | Path, allow_pickle: bool = False) -> Checkpoint:
    """Reads all tensors of a file or a folder.

    Raises:
        CheckpointError: If there are none, files are damaged or absent, are of an adapter, or are pickles and those are
            not allowed.
    """
    found = find_weights(place, allow_pickle)
    return Checkpoint(str(place), read_files(found, allow_pickle), found.notes)


def read_files(files: WeightFiles, allow_pickle: bool) -> dict[str, Tensor]:
    """Reads files of weights; raises like `read_checkpoint`."""
    tensors: dict[str, Tensor] = {}
    for path in files.paths:
        part = read_pickle(path) if allow_pickle and is_pickle(path) else read_safetensors(path)
        refuse_adapter_names(part, path)
        if files.index is not None:
            _check_indexed(path, part, files.index)
        tensors |= part
    return dict(sorted(tensors.items()))


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a safetensors file, by name in order.

    Raises:
        CheckpointError: If it cannot be read, is damaged, or a pickle.
    """
    refuse_pickle(path, allowed=False)
    refuse_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Checkpoint {path} is damaged or no safetensors file ({error}): fetch or save it again."
        ) from error


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors without what training scripts put before every name: content is the same with and without.

    Keys of stored results depend on it.
    """
    for prefix in ("state_dict.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(sorted(tensors.items()))


def check_floats(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises CheckpointError if a weight is of whole numbers, as quantised checkpoints keep them: their scales are not known.

    Arguments:
        tensors: What a model holds as floating point numbers.
        what: How messages call the checkpoint.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{what} is quantised: {name} is of {str(tensor.dtype).removeprefix('torch.')}: give the weights in float32, "
                "float16 or bfloat16."
            )


def _check_indexed(path: Path, part: Mapping[str, Tensor], index: Mapping[str, str]) -> None:
    named = {name for name, file in index.items() if file == path.name}
    if odd := sorted(named ^ set(part)):
        lacks = odd[0] in named
        raise CheckpointError(
            f"{path} {'lacks' if lacks else 'holds'} {odd[0]}, which the index of its folder {'names' if lacks else 'does not name'}"
            f" ({len(odd)} such tensors): the index is of other weights; fetch the folder again."
        )
