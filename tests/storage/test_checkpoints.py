import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bico.errors import CheckpointError, OutputError
from storage.checkpoints import content_digest, load_state, save_state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def state() -> dict[str, Tensor]:
    return {"visual.proj": torch.randn(3, 4), "bias": torch.zeros(5), "scale": torch.tensor(2.0)}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_state_round_trips(path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in state().items()}
    save_state(path, tensors)
    loaded = load_state(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)


def test_strided_tied_and_trained_tensors_round_trip(path: Path) -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    tensors = {"shared": weight, "head": weight, "view": weight[1], "transposed": weight.T}
    save_state(path, tensors)
    loaded = load_state(path)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
        assert not loaded[name].requires_grad


def test_metadata_is_in_the_header(path: Path) -> None:
    save_state(path, state(), {"task": "digits", "source": "zoo:mini-a"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"task": "digits", "source": "zoo:mini-a"}


def test_file_appears_at_once_and_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nested = path.parent / "deep" / "er" / path.name
    seen: list[bool] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append(to.exists()), replace(self, to))[1])
    save_state(nested, state())
    assert seen == [False]  # until the last step there is nothing under the name
    assert list(nested.parent.iterdir()) == [nested]
    umask = os.umask(0)
    os.umask(umask)
    assert nested.stat().st_mode & 0o777 == 0o666 & ~umask


def test_failed_save_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(path, {"x": torch.ones(1)})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="Cannot write .*No space left on device"):
        save_state(path, {"x": torch.zeros(1)})
    assert list(path.parent.iterdir()) == [path]
    assert load_state(path)["x"] == 1


def test_unwritable_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write .*file/model"):
        save_state(tmp_path / "file" / "model", state())
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="Cannot write .*folder"):
        save_state(tmp_path / "folder", state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_missing_file_is_an_error(path: Path) -> None:
    for read in (load_state, content_digest):
        with pytest.raises(CheckpointError, match="Cannot read checkpoint .*model.safetensors .No such file"):
            read(path)
    with pytest.raises(CheckpointError, match="Cannot read checkpoint .*Is a directory"):
        load_state(path.parent)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def lie_about_shape(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "lengthened": lengthen,
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no weights\n"),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "wrong shape": lie_about_shape,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file_is_an_error(path: Path, name: str) -> None:
    save_state(path, state())
    DAMAGES[name](path)
    for read in (load_state, content_digest):
        with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
            read(path)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("/tmp/a-pickle-was-opened",)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_pickles_are_refused_unopened(path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    message = "no safetensors" if protocol == 0 else "is a pickle.*convert it to safetensors.*--allow-pickle"
    with pytest.raises(CheckpointError, match=message):
        load_state(path)
    assert not Path("/tmp/a-pickle-was-opened").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoints_are_refused_with_the_cure(path: Path, zipped: bool) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="is a pickle.*convert it to safetensors.*--allow-pickle"):
        load_state(path)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}], ids=["bare", "wrapped"])
@pytest.mark.parametrize("zipped", [True, False])
def test_allowed_pickles_give_their_tensors(path: Path, zipped: bool, wrap: Callable[[dict], dict]) -> None:
    tensors = state()
    torch.save(
        wrap({f"module.{name}": tensor for name, tensor in tensors.items()}),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    loaded = load_state(path, allow_pickle=True)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    pickled = content_digest(path, allow_pickle=True)
    save_file(tensors, path)
    assert content_digest(path, allow_pickle=True) == pickled == content_digest(path)  # of the content, not of the file


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_allowed_pickles_run_no_code(path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    for read in (load_state, content_digest):
        with pytest.raises(CheckpointError, match="damaged or holds more than tensors"):
            read(path, allow_pickle=True)
    torch.save({"x": torch.ones(1), "bomb": Bomb()}, path)
    with pytest.raises(CheckpointError, match="damaged or holds more than tensors"):
        load_state(path, allow_pickle=True)
    assert not Path("/tmp/a-pickle-was-opened").exists()


def test_a_pickle_of_something_else_is_refused(path: Path) -> None:
    torch.save([torch.ones(1)], path)
    with pytest.raises(CheckpointError, match="no mapping of names to tensors"):
        load_state(path, allow_pickle=True)
    torch.save({"x": torch.tensor(float("nan"))}, path)
    with pytest.raises(CheckpointError, match="not finite"):
        load_state(path, allow_pickle=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_must_be_finite(path: Path, value: float, dtype: torch.dtype) -> None:
    good, bad = torch.ones(4, dtype=dtype), torch.ones(4, dtype=dtype)
    bad[2] = value
    tensors = {"a": good, "b.weight": bad, "c": bad.clone()}
    with pytest.raises(CheckpointError, match="Tensor b.weight of .* has 1 values that are not finite"):
        save_state(path, tensors)
    assert not path.exists()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="Tensor b.weight of .* has 1 values that are not finite"):
        load_state(path)


def digest(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    save_file(tensors, path, metadata)
    return content_digest(path)


def test_content_digest_is_that_of_the_content(path: Path) -> None:
    a, b = torch.arange(6.0), torch.ones(2, 2, dtype=torch.bfloat16)
    one = digest(path, {"a": a, "b": b})
    assert digest(path, {"b": b, "a": a}, {"when": "later"}) == one
    others = [
        {"a": a, "c": b},
        {"a": a + 1, "b": b},
        {"a": a.reshape(2, 3), "b": b},
        {"a": a.double(), "b": b},
        {"a": a.view(torch.int32), "b": b},
        {"a": a},
        {},
    ]
    digests = [one, *(digest(path, other) for other in others)]
    assert len(set(digests)) == len(digests)


def test_content_digest_of_empty_and_scalar_tensors(path: Path) -> None:
    assert digest(path, {"a": torch.zeros(0, 3), "b": torch.tensor(1.0)}) != digest(
        path, {"a": torch.zeros(0, 4), "b": torch.tensor(1.0)}
    )
