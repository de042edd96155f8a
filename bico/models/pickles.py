"""Checkpoints as `torch.save` writes them: read as data only, once somebody has asked for them (`weight_files`).

A pickle can run code when it is opened. PyTorch's `weights_only` reader executes none of it: it knows tensors and plain
containers, and fails on anything else.
"""

import argparse
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bico.errors import CheckpointError

_BESIDE = ("optim", "sched", "lr_sched", "scaler", "grad_scaler", "loops", "callbacks", "rng", "random")
"""How entries of a training state begin that hold no weights."""


def read_pickle(path: str | Path) -> dict[str, Tensor]:
    """Reads a checkpoint's tensors, on the CPU, by the names that they have in its nested dictionaries, joined by dots.

    What is no tensor (an epoch, arguments) and the states of optimisers and their like are left out.

    Raises:
        CheckpointError: If it holds anything but tensors and plain data, or no tensors by name.
    """
    try:
        # Given a path, torch would go by the name's ending.
        with open(path, "rb") as file, warnings.catch_warnings():
            # What a newer protocol holds beyond this reader ends in an error, which says more than a warning.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            with torch.serialization.safe_globals([argparse.Namespace]):  # a script's arguments: attributes, no code
                found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        # PyTorch's own message explains how to open it all the same.
        raise CheckpointError(
            f"Checkpoint {path} is damaged or holds more than tensors: save its state_dict as safetensors where you "
            "trust it."
        ) from error
    tensors = dict(_flat(found)) if isinstance(found, Mapping) else {}
    if not tensors:
        raise CheckpointError(f"Checkpoint {path} is no mapping of names to tensors: save the model's state_dict.")
    return tensors


def _flat(entries: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in entries.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping) and not str(key).lower().startswith(_BESIDE):
            yield from _flat(value, f"{name}.")
