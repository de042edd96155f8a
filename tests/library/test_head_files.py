"""Classifiers as files: what this project exports, and what other people's training has left."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bico import load_classifier
from bico.errors import CheckpointError
from bico.evaluation.head_files import load_head, read_head, save_head
from bico.evaluation.linear_head import LinearHead
from bico.models.files import CLASSES_FILE, HEAD_FILE
from tests.releases import write_release

WEIGHT, BIAS = torch.arange(12.0).reshape(3, 4), torch.tensor([1.0, 2.0, 3.0])
"""Three classes, four inputs, as a `torch.nn.Linear` keeps them."""


def test_what_is_saved_is_the_state_of_a_linear_layer_with_the_same_scores(tmp_path: Path) -> None:
    head, x = LinearHead(torch.randn(4, 3), torch.randn(3)), torch.randn(5, 4)
    save_head(tmp_path, head, ["a", "b", "ü"])
    layer = nn.Linear(4, 3)
    layer.load_state_dict(load_file(tmp_path / HEAD_FILE))
    torch.testing.assert_close(layer(x), head.scores(x))
    found = load_head(tmp_path)
    assert found.classes == ("a", "b", "ü") and torch.equal(found.head.weight, head.weight)
    assert torch.equal(found.head.bias, head.bias)


def test_classes_in_another_order_get_their_own_columns(tmp_path: Path) -> None:
    save_head(tmp_path, LinearHead(WEIGHT.T, BIAS), ["a", "b", "c"])
    moved = load_head(tmp_path).for_classes(["c", "a", "b"])
    assert moved.bias.tolist() == [3.0, 1.0, 2.0] and moved.weight[0].tolist() == [8.0, 0.0, 4.0]
    assert load_head(tmp_path).for_classes(["a", "b", "d"]) is None
    assert load_head(tmp_path).for_classes(["a", "b"]) is None


def test_a_model_without_a_head_keeps_none_of_an_older_one(tmp_path: Path) -> None:
    save_head(tmp_path, LinearHead(WEIGHT.T, BIAS), ["a", "b", "c"])
    save_head(tmp_path, None, [])
    assert load_head(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", ["no names", "no list", "too few"])
def test_a_head_whose_classes_nobody_knows_is_refused(tmp_path: Path, spoil: str) -> None:
    save_head(tmp_path, LinearHead(WEIGHT.T, BIAS), ["a", "b", "c"])
    names = tmp_path / CLASSES_FILE
    {"no names": names.unlink, "no list": lambda: names.write_text("[]"),
     "too few": lambda: names.write_text('{"classes": ["a"]}')}[spoil]()  # fmt: skip
    with pytest.raises(CheckpointError, match="export it again"):
        load_head(tmp_path)


@pytest.mark.parametrize("prefix", ["", "classifier.", "head.", "fc.", "module.fc."])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_somebodys_head_is_read_by_any_of_its_usual_names(tmp_path: Path, prefix: str, kind: str) -> None:
    path, state = tmp_path / f"head.{kind}", {f"{prefix}weight": WEIGHT, f"{prefix}bias": BIAS}
    if kind == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    found = read_head(path, allow_pickle=kind == "pt")
    assert torch.equal(found.weight, WEIGHT.T) and torch.equal(found.bias, BIAS)


def test_a_head_without_a_bias_has_one_of_zeros(tmp_path: Path) -> None:
    save_file({"head.weight": WEIGHT.half()}, tmp_path / "h.safetensors")
    found = read_head(tmp_path / "h.safetensors")
    assert found.bias.tolist() == [0.0] * 3 and found.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"visual.proj": WEIGHT}, "no classifier in it .it holds visual.proj"),
        ({"fc.weight": WEIGHT, "head.weight": WEIGHT + 1}, "several classifiers"),
        ({"weight": BIAS}, r"weight .3,. are no linear classifier"),
        ({"weight": WEIGHT, "bias": torch.ones(4)}, "are no linear classifier"),
        ({"weight": WEIGHT / 0}, "not finite"),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path: Path, state: dict[str, Tensor], words: str) -> None:
    save_file(state, tmp_path / "h.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_head(tmp_path / "h.safetensors")


def test_a_pickle_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    torch.save({"weight": WEIGHT}, tmp_path / "h.pt")
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        read_head(tmp_path / "h.pt")


def test_a_model_without_a_classifier_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no classifier of its own .* end in \+head"):
        load_classifier(write_release(tmp_path / "plain", seed=1))
