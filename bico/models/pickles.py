"""Checkpoints as `torch.save` writes them: read as data only, once somebody has asked for them (`weight_files`).

A pickle can run code when it is opened. PyTorch's `weights_only` reader executes none of it: it knows tensors and plain
containers, and fails on anything else.
"""

import argparse
import datetime
import pathlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bico.errors import CheckpointError

# A script's arguments, and the numbers that it measured: attributes and plain values, no code.
_PLAIN: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, datetime.datetime, datetime.date, datetime.timedelta, np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"), np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "u1", "?")),
]  # fmt: skip
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
            with torch.serialization.safe_globals(_PLAIN):
                found = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        # PyTorch's own message explains how to open it all the same.
        found_there = re.search(r"GLOBAL ([\w.]+)", str(error))
        more = f" ({found_there[1]})" if found_there else ""
        raise CheckpointError(
            f"Checkpoint {path} is damaged or holds more than tensors{more}: save its state_dict as safetensors where you "
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
            yield name, value.detach()  # a Parameter would bring its graph along
        elif isinstance(value, Mapping) and not str(key).lower().startswith(_BESIDE):
            yield from _flat(value, f"{name}.")
