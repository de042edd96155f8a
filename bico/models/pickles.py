"""Checkpoints as `torch.save` writes them: refused unless asked for, and then read as data only.

A pickle can run code when it is opened. PyTorch's `weights_only` reader executes none of it: it knows tensors and plain
containers, and fails on anything else.
"""

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from bico.errors import CheckpointError

# A zip archive since torch 1.6, a bare pickle before.
_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def is_pickle(path: str | Path) -> bool:
    """Whether a file begins as a pickle or a TorchScript archive does, whatever its name says.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(_STARTS)
    except OSError as error:
        raise CheckpointError(f"Cannot read checkpoint {path} ({error.strerror}): check the path.") from error


def refuse_pickle(path: str | Path, allowed: bool) -> None:
    """Does nothing for other formats, or if pickles are allowed.

    Raises:
        CheckpointError: If the file is a pickle that nobody has asked for, or cannot be read.
    """
    if is_pickle(path) and not allowed:
        raise CheckpointError(
            f"Checkpoint {path} is a pickle, which can run code when opened: convert it to safetensors where you trust "
            "it, or say --allow-pickle to have its tensors, and nothing else, read."
        )


def read_pickle(path: str | Path) -> dict[str, Tensor]:
    """Reads a checkpoint's tensors, on the CPU; of one that holds a `state_dict` among other things, that.

    Raises:
        CheckpointError: If it holds anything but tensors and plain containers, or no tensors by name.
    """
    try:
        # Given a path, torch would go by the name's ending.
        with open(path, "rb") as file, warnings.catch_warnings():
            # What a newer protocol holds beyond this reader ends in an error, which says more than a warning.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        # PyTorch's own message explains how to open it all the same.
        raise CheckpointError(
            f"Checkpoint {path} is damaged or holds more than tensors: save its state_dict as safetensors where you "
            "trust it."
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"Checkpoint {path} is no mapping of names to tensors: save the model's state_dict.")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
