import itertools

import pytest
import torch
from torch import Tensor

from bico.errors import CalibrationError, ConfigError
from bico.evaluation.accuracy import accuracy
from bico.finetune import MINI, FinetuneConfig, default_config, drawn_rows, finetune, learning_rate
from bico.models.clip.vit import ClipViT
from bico.task_vector import StateDict, subtract
from tests.tiny import head, pictures

SHORT = FinetuneConfig(steps=40, batch_size=8, lr=3e-3, warmup=4, weight_decay=0.1)


def batch(indices: Tensor) -> tuple[Tensor, Tensor]:
    return pictures(10)[indices], (torch.arange(10) % 5)[indices]


def test_finetuning_learns_and_leaves_the_model_alone(source: ClipViT) -> None:
    classes = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    before = {k: v.clone() for k, v in source.model.state_dict().items()}
    everything = [batch(torch.arange(10))]
    start = accuracy(source, everything, classes)
    expert = finetune(source, batch, 10, classes, SHORT)
    assert all(torch.equal(v, before[k]) for k, v in source.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in source.model.parameters())
    vector = subtract(expert, source.state())
    assert all(tensor.norm() > 0 for name, tensor in vector.items() if "in_proj_bias" not in name)
    with source.updated({k: v.double() for k, v in vector.items()}):
        assert accuracy(source, everything, classes) == 100.0 > start


def test_finetuning_repeats_by_seed(source: ClipViT) -> None:
    few = FinetuneConfig(steps=3, batch_size=4, lr=1e-3, warmup=1)
    first, again = (finetune(source, batch, 10, head(source), few) for _ in range(2))
    other = finetune(source, batch, 10, head(source), FinetuneConfig(**vars(few) | {"seed": 1}))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["visual.proj"], other["visual.proj"])


@pytest.mark.parametrize("steps", [1, 4])
def test_what_it_draws_is_known_beforehand(source: ClipViT, steps: int) -> None:
    few, drawn = FinetuneConfig(steps=steps, batch_size=4, lr=1e-3, warmup=0, seed=3), set()

    def noted(indices: Tensor) -> tuple[Tensor, Tensor]:
        drawn.update(indices.tolist())
        return batch(indices)

    finetune(source, noted, 10, head(source), few)
    assert drawn == drawn_rows(10, few) and len(drawn) == min(10, 4 * steps)


def test_a_trajectory_may_be_watched_and_changes_nothing(source: ClipViT) -> None:
    few = FinetuneConfig(steps=4, batch_size=4, lr=1e-3, warmup=1)
    alone = finetune(source, batch, 10, head(source), few)
    seen, losses = {}, []

    def watch(step: int, state: StateDict, loss: float) -> None:
        losses.append(loss)
        seen[step] = state["visual.proj"].clone()
        with torch.no_grad():
            source.logits(pictures(3), head(source))

    watched = finetune(source, batch, 10, head(source), few, on_step=watch)
    assert all(torch.equal(alone[k], watched[k]) for k in alone)
    assert list(seen) == [1, 2, 3, 4] and all(0 < loss < 20 for loss in losses)
    assert torch.equal(seen[4], watched["visual.proj"])
    path = [source.state()["visual.proj"], *seen.values()]
    assert all((b - a).norm() > 0 for a, b in itertools.pairwise(path))


def test_the_schedule_warms_up_and_goes_to_zero() -> None:
    config = FinetuneConfig()
    rates = [learning_rate(step, config) for step in range(config.steps)]
    assert rates[0] == pytest.approx(1e-5 / 200) and rates[199] == pytest.approx(1e-5)
    assert rates[200] == pytest.approx(1e-5) and rates[1100] == pytest.approx(5e-6)
    assert rates[-1] < 1e-10 and rates[200:] == sorted(rates[200:], reverse=True)


def test_a_loss_that_is_not_finite_stops_the_training(source: ClipViT) -> None:
    def broken(indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = batch(indices)
        return images * torch.inf, labels

    with pytest.raises(CalibrationError, match="diverged at step 0"):
        finetune(source, broken, 10, head(source), SHORT)
    assert not any(p.requires_grad for p in source.model.parameters())


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"warmup": 2000}, {"lr": 0.0}])
def test_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="Fine-tuning needs steps >= 1"):
        FinetuneConfig(**wrong)


def test_the_protocol_is_the_papers_unless_the_tower_is_small() -> None:
    assert default_config(86_000_000) == FinetuneConfig(
        steps=2000, batch_size=128, lr=1e-5, warmup=200, weight_decay=0.1
    )
    assert default_config(1_200_000) == MINI
