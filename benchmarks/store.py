"""The store against raw numpy files on the same disk: writing and reading the covariances and maps of one calibration.

    python -m benchmarks.store --pair vitb16-vitb16 [--repeats 3] [--folder .]

All write the same float32 arrays, flush them to the disk, and read them back (from the page cache, as a following stage
does): numpy's own files, the project's store, and Zarr alone, with the store's chunks and no compression. Nothing else of
an artefact is timed: no lock, no digest.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.storage import LocalStore

from benchmarks.measure import PAIRS, Clock, machine, random_pair, table
from bico.calibration.memory import covariance_shapes
from bico.calibration.signals import Signal
from storage.arrays import chunk_rows, read_arrays, write_arrays

SIGNALS = (Signal.INPUT, Signal.OUTPUT_GRAD)


def arrays_of(pair: str) -> dict[str, Tensor]:
    source, target = random_pair(pair)
    shapes = covariance_shapes(source.sites, target.sites, target.sites, SIGNALS)
    return {f"{tensor}/{signal}": torch.randn(shape) for (tensor, signal), shape in shapes.items()}


def write_raw(folder: Path, arrays: dict[str, Tensor]) -> None:
    folder.mkdir()
    for index, tensor in enumerate(arrays.values()):
        np.save(folder / f"{index}.npy", tensor.numpy())


def read_raw(folder: Path) -> list[np.ndarray]:
    return [np.load(file) for file in sorted(folder.iterdir())]


def write_zarr(folder: Path, arrays: dict[str, Tensor]) -> None:
    group = zarr.create_group(LocalStore(folder))
    for index, tensor in enumerate(arrays.values()):
        chunks = (chunk_rows(tensor), *tensor.shape[1:])
        created = group.create_array(
            str(index), shape=tuple(tensor.shape), dtype="float32", chunks=chunks, compressors=None, filters=None
        )
        created[...] = tensor.numpy()


def read_zarr(folder: Path) -> list[np.ndarray]:
    return [np.asarray(array[...]) for _, array in zarr.open_group(LocalStore(folder), mode="r").arrays()]


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def flush(folder: Path) -> None:
    for path in files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=list(PAIRS), default="vitb16-vitb16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path())
    given = parser.parse_args()
    clock = Clock()  # by the wall: what a disk keeps one waiting is no CPU time
    arrays = arrays_of(given.pair)
    size = sum(tensor.nbytes for tensor in arrays.values())
    writers: dict[str, tuple[Callable, Callable]] = {
        "numpy": (write_raw, read_raw),
        "store": (write_arrays, read_arrays),
        "zarr alone": (write_zarr, read_zarr),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in writers}
    extra = {}
    for _ in range(given.repeats):
        for name, (write, read) in writers.items():
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                place = Path(folder) / "arrays"
                writing, _ = clock.timed(lambda write=write, place=place: (write(place, arrays), flush(place)))
                reading, _ = clock.timed(lambda read=read, place=place: read(place))
                took[name].append((writing, reading))
                extra[name] = sum(path.stat().st_size for path in files(place)) - size
    middle = {name: [statistics.median(run[i] for run in runs) for i in range(2)] for name, runs in took.items()}
    rows = [
        [name, *(f"{seconds:.2f} ({size / seconds / 1e9:.2f} GB/s)" for seconds in times), f"{extra[name] / 1e3:.0f}"]
        for name, times in middle.items()
    ]
    ratios = {
        name: [f"{ours / raw:.2f}" for ours, raw in zip(middle[name], middle["numpy"], strict=True)]
        for name in ("store", "zarr alone")
    }
    print(
        f"# {given.pair}: {len(arrays)} arrays, {size / 1e9:.2f} GB\n\n{machine()}. Medians of {given.repeats} runs.\n"
    )
    print(
        table(
            ["", "write, s", "read, s", "other bytes, kB"],
            [*rows, *([f"{name} / numpy", *ratio, ""] for name, ratio in ratios.items())],
        )
    )


if __name__ == "__main__":
    main()
