"""What a process keeps open follows contents, and is bounded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bico.models.clip.family import WEIGHTS
from bico.models.loading import resolve
from tasks import inputs
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tests.releases import write_release

DIGITS = TaskRef("digits")


def test_a_model_and_its_head_are_opened_anew_when_its_files_change(tmp_path: Path) -> None:
    files = resolve(str(write_release(tmp_path / "a", seed=1)))
    model, head = open_model(files, "cpu"), open_head(files, "cpu", DIGITS)
    split = open_split(files, "cpu", DIGITS, "test")
    assert open_model(files, "cpu") is model and open_head(files, "cpu", DIGITS) is head
    assert open_split(files, "cpu", DIGITS, "test") is split
    state = load_file(files.weights)
    save_file(state | {"text_projection": state["text_projection"] * 2 + 1}, files.folder / WEIGHTS)
    again = open_model(files, "cpu")
    assert again is not model and not torch.equal(again.model.text_projection, model.model.text_projection)
    assert not torch.allclose(open_head(files, "cpu", DIGITS), head)
    assert open_split(files, "cpu", DIGITS, "test") is not split


def test_splits_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = resolve(str(write_release(tmp_path / "a", seed=1)))
    monkeypatch.setattr(inputs, "_splits", type(inputs._splits)())
    row = 3 * 12 * 12 * 4
    monkeypatch.setattr(inputs, "SPLIT_BYTES", 30 * row)
    tasks = [TaskRef("digits"), TaskRef("segments"), TaskRef("digits"), TaskRef("lamps")]
    for task in tasks:
        prepared = open_split(files, "cpu", task, "test")
        prepared.batch(torch.arange(14))
        assert prepared.kept_bytes == 14 * row
    kept = [key[2].name for key in inputs._splits]
    open_split(files, "cpu", tasks[-1], "test")
    assert kept == ["segments", "digits", "lamps"] and [key[2].name for key in inputs._splits] == ["digits", "lamps"]
