import pytest
import torch
from torch.testing import assert_close

from bico import task_vector
from bico.errors import CheckpointError
from bico.models.clip.vit import ClipViT


def test_adding_the_difference_gives_the_expert_back(source: ClipViT) -> None:
    pretrained = source.state()
    expert = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in pretrained.items()}
    vector = task_vector.subtract(expert, pretrained)
    for name, tensor in task_vector.add(pretrained, vector).items():
        assert_close(tensor, expert[name], atol=1e-6, rtol=0)
    half = task_vector.add(pretrained, task_vector.scale(vector, 0.5))
    twice = task_vector.add(pretrained, vector, alpha=0.5)
    assert all(torch.equal(half[name], twice[name]) for name in half)


def test_adding_leaves_the_arguments_and_the_unnamed_alone() -> None:
    state = {"a": torch.zeros(2), "b": torch.ones(2)}
    result = task_vector.add(state, {"a": torch.ones(2)})
    assert torch.equal(state["a"], torch.zeros(2)) and torch.equal(result["b"], torch.ones(2))


def test_norm_is_euclidean_over_all_parameters() -> None:
    assert task_vector.norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5.0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no parameter 'w'"),
        ({"w": torch.zeros(3)}, r"w is \(3,\) there and \(2,\) in the model"),
        ({"w": torch.tensor([0.0, torch.nan])}, "NaN or infinite values in w"),
        ({"w": torch.zeros(2), "x": torch.zeros(1)}, "the model lacks: 'x'"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(state: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        task_vector.subtract(state, {"w": torch.zeros(2)})
