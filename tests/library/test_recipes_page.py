"""docs/recipes.md does what it says, recipe by recipe; and `rehome` refuses what cannot work."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bico
from bico.errors import CheckpointError, ConfigError, NotEnoughSamplesError, OutputError
from bico.evaluation.classifier import load_classifier
from bico.models.loading import load, resolve

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the recipes leave, each in a namespace of its own, run one after the other in a folder with an expert and data."""
    folder = tmp_path_factory.mktemp("recipes")
    state = load(resolve("zoo:mini-a")).state()
    torch.manual_seed(0)
    expert = {
        name: tensor + 0.02 * tensor.std() * torch.randn_like(tensor)
        for name, tensor in state.items()
        if tensor.numel() > 1
    }
    save_file({name: tensor.contiguous() for name, tensor in (state | expert).items()}, folder / "expert.safetensors")
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for kind, value in (("dark", 40), ("light", 200)):
            (place := folder / "data" / "marks" / split / kind).mkdir(parents=True)
            for n in range(count):
                grey = np.clip(draw.normal(value, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(grey).save(place / f"{n}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        spaces = [{"rehome": bico.rehome} for _ in CODE]
        for n, code in enumerate(CODE):
            if "new.state_dict()" in code:
                spaces[n] |= spaces[n - 1]
            exec(compile(code, "recipes.md", "exec"), spaces[n])
    return {"folder": folder, "spaces": spaces}


def test_an_expert_in_a_file_moves_and_is_saved(ran: dict[str, Any]) -> None:
    done, folder = ran["spaces"][0]["done"], ran["folder"] / "digits-on-mini-b"
    assert [str(row.method) for row in done.rows] == ["zero-shot", "bico", "expert"]
    model, *_ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    before, moved = load(resolve("zoo:mini-b")).state(), load_file(folder / "task-vector.safetensors")
    after = model.state_dict()
    assert moved and all(torch.allclose(after[name], before[name] + moved[name], atol=1e-6) for name in moved)
    assert all(torch.equal(moved[name], done.vector[name]) for name in moved)


def test_prefixes_are_found_and_folders_are_read(ran: dict[str, Any]) -> None:
    done = ran["spaces"][1]["done"]
    assert {row.task for row in done.rows} == {"marks"} and done.rows[1].budget.asked == 8
    assert any("module." in note for note in done.notes) and "| method | N | marks |" in str(done)


def test_a_data_set_of_torch_and_a_classifier(ran: dict[str, Any]) -> None:
    done = ran["spaces"][2]["done"]
    assert done.class_names == ("dark", "light") and done.head is not None
    classify = load_classifier(ran["folder"] / "marks-classifier")
    said = classify([Image.new("RGB", (32, 32), colour) for colour in ("black", "white")])
    assert set(said) <= {"dark", "light"}


def test_modules_of_ones_own(ran: dict[str, Any]) -> None:
    found = ran["spaces"][3]
    done, start, moved, expert = found["done"], *(row.accuracy for row in found["done"].rows)
    assert expert > 95 and moved > start + 10
    model, new = done.model, found["new"]
    assert isinstance(model, nn.Sequential) and model is not new
    for name, tensor in new.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor + done.vector[name] if name in done.vector else tensor)
    saved = load_file(ran["folder"] / "new-updated" / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    half = ran["spaces"][4]["half"]
    assert torch.allclose(half["0.weight"], new.state_dict()["0.weight"] + 0.5 * done.vector["0.weight"])
    with pytest.raises(OutputError, match="there already and not empty"):
        done.save(ran["folder"] / "new-updated")


def test_what_cannot_work_is_said_in_a_line() -> None:
    old, new, loss = nn.Linear(3, 2), nn.Linear(3, 2), nn.CrossEntropyLoss(reduction="sum")
    data = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
    state = {name: tensor + 0.1 for name, tensor in old.state_dict().items()}
    for expect, message, given in (
        (ConfigError, "give its loss", {"loss": None}),
        (ConfigError, "a model of a family and the other a module", {"target": "zoo:mini-b"}),
        (ConfigError, "The expert is a int", {"expert": 3}),
        (ConfigError, "source is a int", {"source": 3}),
        (ConfigError, "last steps read a family's features", {"method": "bico+head"}),
        (CheckpointError, "itself, not an expert", {"expert": old.state_dict()}),
        (NotEnoughSamplesError, "21 calibration samples", {"samples": 21}),
    ):
        asked: dict[str, Any] = {
            "source": old,
            "target": new,
            "expert": state,
            "data": data,
            "loss": loss,
            "samples": 20,
        }
        with pytest.raises(expect, match=message):
            bico.rehome(**asked | given)


def test_drawn_samples_are_those_of_the_seed_and_loaders_give_their_first() -> None:
    torch.manual_seed(0)
    old, new, loss = nn.Linear(3, 2), nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="sum")
    data, theirs = (TensorDataset(torch.randn(20, width), torch.arange(20) % 2) for width in (3, 4))
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in old.state_dict().items()}
    asked: dict[str, Any] = {"loss": loss, "farthest": None}

    def moved(ours: Any, other: Any, **more: Any) -> torch.Tensor:
        return bico.rehome(old, new, state, ours, target_data=other, **asked | more).vector["weight"]

    assert torch.equal(moved(data, theirs, samples=10, seed=1), moved(data, theirs, samples=10, seed=1))
    assert not torch.equal(moved(data, theirs, samples=10, seed=1), moved(data, theirs, samples=10, seed=2))
    first = moved(DataLoader(data, 5), DataLoader(theirs, 5), samples=10)
    halves = [torch.utils.data.Subset(one, range(10)) for one in (data, theirs)]
    assert torch.allclose(first, moved(*halves, samples=None), atol=1e-6)
    assert torch.allclose(moved(data, theirs, samples=None, alpha=0.5), 0.5 * moved(data, theirs, samples=None))
