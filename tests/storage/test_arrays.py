import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor

from bico.errors import StoreError
from storage import arrays
from storage.arrays import iterate_arrays, read_arrays, read_attrs, write_arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arrays.zarr"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].nan_to_num(7.0), tensor.nan_to_num(7.0)), name


TENSORS = {
    "float32": torch.randn(5, 3),
    "float64": torch.randn(4, dtype=torch.float64),
    "int64": torch.arange(-3, 3),
    "scalar": torch.tensor(3.0),
    "no rows": torch.zeros(0, 4),
    "no columns": torch.zeros(4, 0),
    "zeros": torch.zeros(3, 3),
    "int zeros": torch.zeros(3, dtype=torch.int64),
    "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
    "all not a number": torch.full((2, 2), float("nan")),
    "transposed": torch.randn(3, 5).T,
    "strided": torch.randn(6, 6)[::2, 1::2],
    "needs grad": torch.randn(2, requires_grad=True),
    "three axes": torch.randn(2, 3, 4),
}


def test_every_kind_of_tensor_round_trips(path: Path) -> None:
    write_arrays(path, TENSORS)
    assert_same(read_arrays(path), {name: tensor.detach() for name, tensor in TENSORS.items()})
    assert read_arrays(path)["not a number"].signbit().tolist()[2]  # bit for bit


NAMES = ["blocks.0.attn_in/input/50", "a", "a/b", "a%2Fb", "a/", "/a", "..", ".", "__x", "zarr.json", "c", "é ü", "A"]


def test_every_name_round_trips(path: Path) -> None:
    tensors = {name: torch.full((2,), float(i)) for i, name in enumerate(NAMES)}
    write_arrays(path, tensors)
    assert_same(read_arrays(path), tensors)
    assert [name for name, _ in iterate_arrays(path)] == NAMES
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]  # nothing climbed out


def test_chosen_names_come_in_the_order_asked(path: Path) -> None:
    write_arrays(path, {"a": torch.zeros(1), "b": torch.ones(1), "c": torch.ones(2)})
    assert_same(read_arrays(path, ["c", "a"]), {"c": torch.ones(2), "a": torch.zeros(1)})
    assert read_arrays(path, []) == {}


def test_attributes_round_trip(path: Path) -> None:
    write_arrays(path, {}, {"samples": [10, 50], "model": "mini-a"})
    assert read_attrs(path) == {"samples": [10, 50], "model": "mini-a"}
    assert read_arrays(path) == {}


def test_large_arrays_are_cut_into_rows_and_small_ones_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 1000)
    tensors = {"large": torch.randn(17, 50), "small": torch.randn(5, 50), "wide row": torch.randn(2, 999)}
    write_arrays(path, tensors)
    group = zarr.open_group(path, mode="r")
    assert group["large"].chunks == (5, 50)
    assert group["small"].chunks == (5, 50)
    assert group["wide row"].chunks == (1, 999)
    assert_same(read_arrays(path), tensors)


PLAIN = {name: tensor.detach() for name, tensor in TENSORS.items() if name != "needs grad"}


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("chunk_bytes", [24, 2**20], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_zarr_reads_what_we_write(
    path: Path, name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "CHUNK_BYTES", chunk_bytes)
    write_arrays(path, {name: PLAIN[name]})
    found = np.asarray(zarr.open_group(path, mode="r")[name][...])
    expected = PLAIN[name].numpy()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert bits(found) == bits(expected)


@pytest.mark.parametrize("chunk_bytes", [24, 2**20], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize("name", PLAIN)
def test_we_read_what_plain_zarr_writes(
    path: Path, name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and from files with the names and sizes of ours."""
    monkeypatch.setattr(arrays, "CHUNK_BYTES", chunk_bytes)
    tensor = PLAIN[name]
    group = zarr.create_group(path, attributes={"bico:arrays": [name]})
    created = group.create_array(
        name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.numpy().dtype),
        chunks=arrays._metadata(tensor).chunk_grid.chunk_shape,
        compressors=None,
        filters=None,
        fill_value=float("nan") if tensor.is_floating_point() else 0,
        config={"write_empty_chunks": True},
    )
    created[...] = tensor.numpy()
    found = read_arrays(path)[name]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert bits(found.numpy()) == bits(tensor.numpy())
    write_arrays(path.with_name("ours"), {name: tensor})

    def chunks(folder: Path) -> dict[str, int]:
        files = (file for file in folder.rglob("*") if file.name != "zarr.json" and file.is_file())
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}

    assert chunks(path) == chunks(path.with_name("ours"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"chunks": (3, 3), "compressors": None}, "its chunks are no whole rows"),
        ({"chunks": (3, 6), "compressors": "auto"}, "its chunks are not raw bytes"),
    ],
    ids=["chunks of columns", "compressed"],
)
def test_an_array_that_is_laid_out_in_another_way_is_an_error(path: Path, how: dict, message: str) -> None:
    group = zarr.create_group(path, attributes={"bico:arrays": ["a"]})
    group.create_array("a", shape=(6, 6), dtype="float32", **how)[...] = np.ones((6, 6), "float32")
    with pytest.raises(StoreError, match=f"'a' in .* is damaged .{message}"):
        read_arrays(path)


def test_bytes_are_plain(path: Path) -> None:
    tensor = torch.randn(3, 4)
    write_arrays(path, {"x": tensor})
    assert (path / "x" / "c" / "0" / "0").read_bytes() == tensor.numpy().tobytes()


def test_streaming_holds_one_array_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BATCH_BYTES", 100)
    written_before: list[int] = []

    def produce() -> Iterator[tuple[str, Tensor]]:
        for i in range(4):
            written_before.append(len(list(path.glob("large*/c"))))
            yield f"large {i}", torch.full((100,), float(i))

    write_arrays(path, produce())
    # An array is on the disk before the one after the next is asked for.
    assert written_before == [0, 0, 1, 2]
    assert read_arrays(path)["large 3"][0] == 3
    assert [name for name, _ in iterate_arrays(path)] == [f"large {i}" for i in range(4)]


def chunk(path: Path) -> Path:
    return path / "blocks.0%2Finput" / "c" / "0" / "0"


def corrupt_header(path: Path) -> None:
    (path / "blocks.0%2Finput" / "zarr.json").write_text("{")


DAMAGES = {
    "chunk gone": lambda path: chunk(path).unlink(),
    "chunk cut": lambda path: chunk(path).write_bytes(chunk(path).read_bytes()[:-4]),
    "chunk empty": lambda path: chunk(path).write_bytes(b""),
    "array gone": lambda path: shutil.rmtree(path / "blocks.0%2Finput"),
    "header damaged": corrupt_header,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_an_error_that_names_the_array(path: Path, name: str, dtype: torch.dtype) -> None:
    write_arrays(path, {"fine": torch.ones(2), "blocks.0/input": torch.ones(4, 4, dtype=dtype)})
    DAMAGES[name](path)
    with pytest.raises(StoreError, match="'blocks.0/input' in .* is damaged .*delete the artefact"):
        read_arrays(path)
    assert_same(read_arrays(path, ["fine"]), {"fine": torch.ones(2)})


def test_a_hole_reads_as_not_a_number_in_plain_zarr(path: Path) -> None:
    write_arrays(path, {"blocks.0/input": torch.ones(4, 4)})
    chunk(path).unlink()
    assert torch.from_numpy(zarr.open_group(path, mode="r")["blocks.0%2Finput"][...]).isnan().all()


def test_unknown_name_is_an_error(path: Path) -> None:
    write_arrays(path, {"a": torch.zeros(1)})
    with pytest.raises(StoreError, match="'b' is not in .*which holds 1 others"):
        read_arrays(path, ["a", "b"])


def test_unfinished_group_is_an_error(path: Path) -> None:
    def fail() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(1)
        raise ZeroDivisionError("in the maths")

    with pytest.raises(ZeroDivisionError, match="in the maths"):
        write_arrays(path, fail())
    for read in (read_arrays, read_attrs):
        with pytest.raises(StoreError, match="no finished group of arrays"):
            read(path)


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"zarr_format": 3, "node_type": "array"})])
def test_damaged_group_is_an_error(path: Path, content: str) -> None:
    write_arrays(path, {"a": torch.zeros(1)})
    (path / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match="no finished group of arrays"):
        read_arrays(path)


def test_missing_group_is_an_error_and_is_not_created(path: Path) -> None:
    with pytest.raises(StoreError, match="no finished group of arrays"):
        read_arrays(path)
    assert not path.exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.bool, torch.int32, torch.complex64])
def test_other_dtypes_are_refused(path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(StoreError, match=f"'x' is {dtype}: store float32"):
        write_arrays(path, {"x": torch.zeros(1).to(dtype)})


@pytest.mark.parametrize("twice", [["a", "a"], ["a", "b", "a"]])
def test_a_name_comes_once(path: Path, twice: list[str]) -> None:
    with pytest.raises(StoreError, match="'a' comes twice"):
        write_arrays(path, [(name, torch.zeros(1)) for name in twice])


def test_empty_name_is_refused(path: Path) -> None:
    with pytest.raises(StoreError, match="empty name"):
        write_arrays(path, {"": torch.zeros(1)})


def test_groups_are_not_changed(path: Path) -> None:
    write_arrays(path, {"a": torch.zeros(1)})
    with pytest.raises(StoreError, match="something is there already"):
        write_arrays(path, {"b": torch.zeros(1)})
    assert list(read_arrays(path)) == ["a"]


def test_index_attribute_is_reserved(path: Path) -> None:
    with pytest.raises(StoreError, match="'bico:arrays' is the index"):
        write_arrays(path, {}, {"bico:arrays": []})


def test_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot write arrays to .*file/x"):
        write_arrays(tmp_path / "file" / "x", {"a": torch.zeros(1)})


def test_name_too_long_for_the_disk_is_an_error(path: Path) -> None:
    with pytest.raises(StoreError, match="Cannot write arrays to .*too long"):
        write_arrays(path, {"x" * 300: torch.zeros(1)})
