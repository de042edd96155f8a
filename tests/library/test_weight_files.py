"""Which files are taken at a place, and what is refused: folders as libraries, scripts and broken downloads leave them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bico.errors import CheckpointError
from bico.models.checkpoints import read_checkpoint
from bico.models.families import find_weights

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = {"a": torch.ones(2), "b": torch.zeros(3)}
INDEX = "model.safetensors.index.json"


def names(place: Path, allow_pickle: bool = False) -> list[str]:
    return [path.name for path in find_weights(place, allow_pickle).paths]


def sharded(folder: Path, **where: str) -> Path:
    """Two shards with a tensor each, and an index that says so unless told otherwise."""
    for number, name in enumerate("ab", 1):
        save_file({name: WEIGHTS[name]}, folder / f"model-0000{number}-of-00002.safetensors")
    right = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": right | where}))
    return folder


def test_shards_are_read_together(tmp_path: Path) -> None:
    read = read_checkpoint(sharded(tmp_path))
    assert {name: tensor.tolist() for name, tensor in read.tensors.items()} == {"a": [1, 1], "b": [0, 0, 0]}
    assert read.notes == ()
    assert read_checkpoint(tmp_path / INDEX).tensors.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "1 of the 2 files that .* absent: model-00002-of-00002"),
        (lambda f: (f / INDEX).unlink(), r"holds shards .*without their index \(model\.safetensors\.index\.json\)"),
        (lambda f: (f / INDEX).write_text("{}"), "is no index of shards"),
        (lambda f: sharded(f, a="../model.safetensors"), "is no index of shards .*no files of its folder"),
        (lambda f: save_file(WEIGHTS, f / "model.safetensors"), r"model\.safetensors lies beside the 2 files"),
        (lambda f: save_file({"c": WEIGHTS["a"]}, f / "model-00003-of-00003.safetensors"), "model-00003-of-00003.* lies beside"),
        (lambda f: sharded(f, c="model-00002-of-00002.safetensors"), "lacks c, which the index of its folder names"),
        (lambda f: save_file(WEIGHTS, f / "model-00002-of-00002.safetensors"), "holds a, which the index .* does not name"),
    ],
)  # fmt: skip
def test_shards_that_are_not_one_set_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(sharded(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)


def test_of_several_files_the_librarys_own_is_taken_and_told(tmp_path: Path) -> None:
    for name in ("task-vector", "linear_head", "optimizer"):
        save_file(WEIGHTS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="holds no weights"):
        find_weights(tmp_path)
    save_file(WEIGHTS, tmp_path / "mine.safetensors")
    assert names(tmp_path) == ["mine.safetensors"]
    save_file(WEIGHTS, tmp_path / "yours.safetensors")
    with pytest.raises(CheckpointError, match=r"several files of weights \(mine\.safetensors, yours\.safetensors\)"):
        find_weights(tmp_path)
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    save_file(WEIGHTS, tmp_path / "open_clip_model.safetensors")
    found = find_weights(tmp_path)
    assert [path.name for path in found.paths] == ["open_clip_model.safetensors"]
    assert "takes open_clip_model.safetensors, and not mine.safetensors, model.safetensors, yours" in found.notes[0]


def test_pickles_in_a_folder_are_named_and_taken_if_allowed(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    torch.save({"state": 1}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*--allow-pickle"):
        find_weights(tmp_path)
    assert names(tmp_path, True) == ["pytorch_model.bin"]
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert names(tmp_path) == names(tmp_path, True) == ["model.safetensors"]


def test_a_training_run_gives_its_last_epoch(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for epoch in (2, 9, 10):
        torch.save(WEIGHTS, tmp_path / f"checkpoints/epoch_{epoch}.pt")
    for place in (tmp_path, tmp_path / "checkpoints"):
        found = find_weights(place, True)
        assert [path.name for path in found.paths] == ["epoch_10.pt"]
        assert "takes epoch_10.pt, the last of 3 epochs" in found.notes[0]
    (tmp_path / "trainer" / "checkpoint-500").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no weights itself, but checkpoint-500"):
        find_weights(tmp_path / "trainer")


LORA: dict[str, Tensor] = {"base_model.model.q.lora_A.weight": torch.zeros(2, 3)}


@pytest.mark.parametrize("kept", ["adapter_config.json", "adapter_model.safetensors", "renamed.safetensors"])
def test_an_adapter_is_called_by_its_name(tmp_path: Path, kept: str) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file(LORA, tmp_path / "adapter_model.safetensors")
    if kept == "renamed.safetensors":
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / kept)
    place = tmp_path if kept == "adapter_config.json" else tmp_path / kept
    with pytest.raises(CheckpointError, match="is a LoRA adapter of PEFT.*merge_and_unload.*save_pretrained"):
        read_checkpoint(place)


def test_what_cannot_be_read_is_told_before_a_model_is_opened(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "expert.pt")
    code = f"""
import sys
from flows.cli import main
sys.argv = ["bico", "evaluate", "zoo:mini-a", "--task", "digits", "--expert", {str(tmp_path / "expert.pt")!r}]
try:
    main()
finally:
    print(sorted({{"open_clip", "transformers", "prefect", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "is a pickle" in done.stderr and "--allow-pickle" in done.stderr
    assert done.stdout == "[]\n" and len(done.stderr.splitlines()) == 1


def test_finding_weights_needs_no_torch(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "expert.pt")
    code = f"""
import sys
from bico.errors import CheckpointError
from bico.models.families import find_weights
try:
    find_weights({str(tmp_path / "expert.pt")!r})
except CheckpointError:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
