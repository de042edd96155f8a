"""Raw chunk files of a Zarr array, written and read past Zarr.

What lies on the disk is what Zarr itself would write: a file of little-endian bytes per chunk (but zeros in place of
the fill value behind the last row, where nobody reads). Only the way there is shorter, because Zarr copies each chunk
from thread to thread, and opens each array in another thread. Medians on two busy cores, ms, with Zarr 3.1
(`python -m benchmarks.store` measures the like):

                 one float32 array of 3072 x 3072    200 of 64 x 64
    writing      25, Zarr 52                         no difference: creating them is what takes long
    reading      17, Zarr 37                         11, Zarr 135

So it pays for what is large and for reading what is small. Remove this file, for `array[...]` in `storage.arrays`, once
Zarr takes less than one and a half times as long in all of these.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_RAW = [{"name": "bytes", "configuration": {"endian": "little"}}]


def write_chunks(folder: Path, tensor: Tensor, rows: int) -> None:
    """Writes the chunks of an array whose metadata Zarr has written.

    All-zero chunks are written too, or they could not be told from missing ones.

    Arguments:
        folder: Of the array.
        rows: Of a chunk, which is as wide as the array.
    """
    array = np.asarray(tensor.numpy(force=True), order="C")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    for file, part, beyond in _chunks(folder, array, rows):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as chunk:
            chunk.write(part)
            chunk.write(bytes(beyond))


def read_chunks(folder: Path) -> Tensor:
    """Reads an array of raw bytes whose chunks are as wide as itself, straight to where it goes.

    Raises:
        OSError: If the description or a chunk is missing.
        ValueError: If the description is damaged, or of an array that is laid out in another way, or a chunk is longer or
            shorter than it should be.
        KeyError, TypeError: If the description lacks something.
    """
    described = json.loads((folder / "zarr.json").read_bytes())
    if described["codecs"] != _RAW:
        raise ValueError("its chunks are not raw bytes")
    shape = described["shape"]
    rows, *widths = described["chunk_grid"]["configuration"]["chunk_shape"] or [1]
    if widths != [max(1, width) for width in shape[1:]]:
        raise ValueError("its chunks are no whole rows")
    found = np.empty(shape, np.dtype(described["data_type"]).newbyteorder("<"))
    for file, part, beyond in _chunks(folder, found, rows):
        size = file.stat().st_size
        with file.open("rb", buffering=0) as chunk:
            if size != len(part) + beyond or chunk.readinto(part) != len(part):
                raise ValueError(f"chunk {file.relative_to(folder)} has {size} bytes, not {len(part) + beyond}")
    return torch.from_numpy(found.astype(found.dtype.newbyteorder("="), copy=False))


def _chunks(folder: Path, array: np.ndarray, rows: int) -> Iterator[tuple[Path, memoryview, int]]:
    """The files of an array in C order: where each is, its bytes, and how many more make it whole.

    A chunk is whole: behind the array's last row come rows that nobody reads.
    """
    if not array.ndim:
        yield folder / "c", array.reshape(1).data.cast("B"), 0
        return
    for index in range(-(-len(array) // rows) if array.size else 0):
        part = array[index * rows : (index + 1) * rows]
        file = folder.joinpath("c", str(index), *["0"] * (array.ndim - 1))
        yield file, part.data.cast("B"), (rows - len(part)) * part[0].nbytes
