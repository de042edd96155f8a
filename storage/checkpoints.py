"""Model weights and task vectors as safetensors files."""

import hashlib
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bico.errors import CheckpointError, OutputError
from bico.models.checkpoints import canonical, read_safetensors
from bico.models.pickles import read_pickle
from bico.models.weight_files import is_pickle


def save_state(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes named tensors to a safetensors file, which appears complete or not at all.

    Arguments:
        path: The file; replaced if it is there.
        tensors: On any device, of any strides. Tied tensors are written once per name.
        metadata: Strings for the header.

    Raises:
        CheckpointError: If a tensor is not finite.
        OutputError: If the file cannot be written.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        _check_finite(name, tensor, path)
    # contiguous and apart from each other: safetensors stores no strides and no sharing
    apart = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        mode = unfinished.stat().st_mode  # what files here get; the one of `save_file` is for the user's eyes only
        save_file(apart, unfinished, dict(metadata or {}))
        unfinished.chmod(mode)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"Cannot write {path} ({error}): choose another place, or mend permissions or space."
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def load_state(path: str | Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file, in the dtypes they were stored in, on the CPU.

    Arguments:
        allow_pickle: Also read what `torch.save` wrote, tensors only (`bico.models.pickles`).

    Raises:
        CheckpointError: If the file is missing, damaged or of another format, or a tensor is not finite.
    """
    tensors = _tensors(path, allow_pickle)
    for name, tensor in tensors.items():
        _check_finite(name, tensor, path)
    return tensors


def content_digest(path: str | Path, allow_pickle: bool = False) -> str:
    """Returns the SHA-256 of what a checkpoint holds: names, dtypes, shapes and bytes of its tensors.

    Unlike the digest of the file, it is the same when metadata or the order of the tensors differ. Raises like
    `load_state`, but does not ask for finite tensors.
    """
    return digest_of(_tensors(path, allow_pickle))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of tensors: names, dtypes, shapes and bytes, by name in order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(path: str | Path, allow_pickle: bool) -> dict[str, Tensor]:
    """All tensors, by name in order."""
    return canonical(read_pickle(path)) if allow_pickle and is_pickle(path) else read_safetensors(path)


def _check_finite(name: str, tensor: Tensor, path: str | Path) -> None:
    if not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(
            f"Tensor {name} of checkpoint {path} has {count} values that are not finite: "
            "its training diverged or the file is damaged; use another checkpoint."
        )
