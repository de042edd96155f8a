"""Named tensors of one artefact, as a Zarr group.

The group holds one flat Zarr array per tensor, its name percent-quoted where it has a slash, and an index of all names
that is written last. Chunks are raw bytes (covariances hardly compress) and are each written once, whole; a chunk that
is missing reads as NaN in plain Zarr and as an error here. Names, groups and metadata are made here by Zarr; the chunks
themselves are moved by `storage.chunks`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import torch
import zarr
from torch import Tensor
from zarr.codecs import BytesCodec
from zarr.core.group import GroupMetadata
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.dtype import Float32, Float64, Int64
from zarr.storage import LocalStore

from bico.errors import StoreError
from storage.chunks import read_chunks, write_chunks

CHUNK_BYTES = 8 * 2**20
"""Rows go into chunks of about this size; a matrix below it is one chunk."""
BATCH_BYTES = 16 * 2**20
"""Small arrays are created together up to this size: alone, each costs three times as long."""

_INDEX = "bico:arrays"  # the group's attribute that lists the names; without it, writing did not finish
_DTYPES: dict[torch.dtype, type[Float32 | Float64 | Int64]] = {
    torch.float32: Float32,
    torch.float64: Float64,
    torch.int64: Int64,
}


Arrays = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


def write_arrays(path: Path, arrays: Arrays, attrs: Mapping[str, Any] | None = None) -> None:
    """Writes tensors into a new Zarr group.

    Arguments:
        path: Where the group goes; must not exist.
        arrays: Tensors of any shape, float32, float64 or int64, on any device. Given as an iterator of (name, tensor),
            one large array (or a batch of small ones) is in memory at a time.
        attrs: JSON values to keep with them.

    Raises:
        StoreError: If something is at `path` or it cannot be written, a name is empty or comes twice, or a dtype is another.
    """
    with new_arrays(path, attrs) as write:
        write(arrays)


@contextmanager
def new_arrays(path: Path, attrs: Mapping[str, Any] | None = None) -> Iterator[Callable[[Arrays], None]]:
    """Like `write_arrays`, for tensors that come bit by bit: gives a function to call with each lot of them.

    The group counts as finished when the context ends without an error.
    """
    attrs = dict(attrs or {})
    if _INDEX in attrs:
        raise StoreError(f"Attribute {_INDEX!r} is the index of the arrays: use another name.")
    if Path(path).exists():
        raise StoreError(
            f"Arrays cannot be written to {path}: something is there already, and groups are never changed."
        )
    store = LocalStore(path)
    with _writing(path):
        group = zarr.create_group(store)
    names: dict[str, None] = {}

    def write(arrays: Arrays) -> None:
        for batch in _batches(arrays.items() if isinstance(arrays, Mapping) else arrays):
            for name, tensor in batch.items():
                if name in names:
                    raise StoreError(f"Array {name!r} comes twice in {path}: names must differ.")
                names[name] = None
                if tensor.dtype not in _DTYPES:
                    raise StoreError(f"Array {name!r} is {tensor.dtype}: store float32, float64 or int64 (`.float()`).")
            nodes: dict[str, GroupMetadata | ArrayV2Metadata | ArrayV3Metadata] = {
                _node(name): _metadata(tensor) for name, tensor in batch.items()
            }
            with _writing(path):
                dict(zarr.create_hierarchy(store=store, nodes=nodes))
                for name, tensor in batch.items():
                    write_chunks(Path(path) / _node(name), tensor, chunk_rows(tensor))

    yield write
    with _writing(path):
        group.update_attributes({**attrs, _INDEX: list(names)})


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Reads tensors back, bit for bit, on the CPU.

    Arguments:
        path: A group from `write_arrays`.
        names: Which ones, in this order; all if None.

    Raises:
        StoreError: If there is no finished group at `path`, or an array is missing, lacks a chunk or is damaged; the
            message names the array.
    """
    return dict(iterate_arrays(path, names))


def iterate_arrays(path: Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Like `read_arrays`, with one array in memory at a time."""
    _, known = _open(path)
    for name in known if names is None else names:
        if name not in known:
            raise StoreError(f"Array {name!r} is not in {path}, which holds {len(known)} others.")
        try:
            tensor = read_chunks(Path(path) / _node(name))
        except Exception as error:  # Zarr has no error of its own for a chunk or a header that is cut short
            raise StoreError(
                f"Array {name!r} in {path} is damaged ({error}): delete the artefact, the next run makes it again."
            ) from error
        yield name, tensor


def array_names(path: Path) -> list[str]:
    """Returns the names of a group's arrays, in the order in which they were written.

    Raises:
        StoreError: If there is no finished group at `path`.
    """
    return _open(path)[1]


def read_attrs(path: Path) -> dict[str, Any]:
    """Returns the attributes that were written with a group."""
    return {name: value for name, value in _open(path)[0].attrs.asdict().items() if name != _INDEX}


def _open(path: Path) -> tuple[zarr.Group, list[str]]:
    try:
        group = zarr.open_group(LocalStore(path, read_only=True), mode="r", zarr_format=3)
        return group, cast("list[str]", group.attrs[_INDEX])  # as `write_arrays` left it
    except Exception as error:  # missing folder, missing or damaged header, no index: all of them, and Zarr's own
        raise StoreError(
            f"There is no finished group of arrays at {path}: delete the artefact, the next run makes it again."
        ) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"Cannot write arrays to {path} ({error}): mend permissions, or free some space.") from error


def _batches(items: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Groups small arrays; one larger than a batch comes alone."""
    batch: dict[str, Tensor] = {}
    size = 0
    for name, tensor in items:
        if batch and (size + tensor.nbytes > BATCH_BYTES or name in batch):
            yield batch
            batch, size = {}, 0
        batch[name] = tensor
        size += tensor.nbytes
    if batch:
        yield batch


def chunk_rows(tensor: Tensor) -> int:
    """Rows of a chunk: as many as fit, evenly divided, so that the last chunk is nearly full."""
    rows = max(1, tensor.shape[0] if tensor.ndim else 1)
    most = max(1, CHUNK_BYTES // max(1, tensor.nbytes // rows))
    return -(-rows // -(-rows // most))


def _metadata(tensor: Tensor) -> ArrayV3Metadata:
    chunks = (chunk_rows(tensor), *(max(1, n) for n in tensor.shape[1:])) if tensor.ndim else ()
    return ArrayV3Metadata(
        shape=tuple(tensor.shape),
        data_type=_DTYPES[tensor.dtype](),
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": chunks}},
        chunk_key_encoding={"name": "default"},
        fill_value=float("nan") if tensor.is_floating_point() else 0,
        codecs=[BytesCodec(endian="little")],
        attributes={},
        dimension_names=None,
    )


def _node(name: str) -> str:
    """Returns the name of a tensor's node: flat, since every level of groups would cost a file to write and to read."""
    if not name:
        raise StoreError("An array has an empty name.")
    node = quote(name, safe=" ,;=+()[]")
    # Names that Zarr or the file system keep for themselves: '..', '__…', 'zarr.json'.
    return f"%{ord(node[0]):02X}{node[1:]}" if node[0] in "._" or node == "zarr.json" else node
