"""Gradients of the target's parameters, and the methods that live on them: GradFix and few-shot."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import split_at
from bico.calibration.parameter_gradients import ParameterGradient, loss_gradients, parameter_gradients
from bico.errors import CalibrationError
from bico.methods import METHODS, Gathered, Needs, Pair, get_method
from bico.models.clip.vit import ClipViT
from tests.library.test_methods import carried, labels_of, without_key_biases
from tests.tiny import head, pictures, random_task_vector

SUM, VOTES = ParameterGradient.SUM, ParameterGradient.VOTES


def streamed(model: ClipViT, snapshots: list[int], batch_size: int, kinds: list[ParameterGradient]) -> dict:
    count = max(snapshots)
    images, labels = pictures(count), labels_of(count)
    batches = ((images[part], labels[part]) for part in split_at(count, batch_size, snapshots))
    return dict(parameter_gradients(model, batches, head(model), kinds, snapshots))


def test_statistics_are_those_of_every_samples_gradient(source: ClipViT) -> None:
    images, labels, classes = pictures(6), labels_of(6), head(source)
    gathered = streamed(source, [6], 4, [SUM, VOTES])[6]
    single = [loss_gradients(source, images[i : i + 1], labels[i : i + 1], classes) for i in range(6)]
    for name in source.state():
        each = torch.stack([gradients[name] for gradients in single])
        assert_close(gathered[SUM][name], each.sum(0))
        assert torch.equal(gathered[VOTES][name], (each < 0).double().sum(0) - (each > 0).double().sum(0))


def test_the_gradient_points_uphill(source: ClipViT) -> None:
    """Against a difference quotient along one parameter."""
    images, labels, classes = pictures(6), labels_of(6), head(source)
    name, step = "visual.transformer.resblocks.1.mlp.c_fc.bias", 1e-6
    losses = []
    for sign in (1, -1):
        nudge = torch.zeros_like(source.state()[name])
        nudge[3] = sign * step
        with source.updated({name: nudge}):
            losses.append(source.loss(images, labels, classes).item())
    slope = (losses[0] - losses[1]) / (2 * step)
    assert streamed(source, [6], 6, [SUM])[6][SUM][name][3].item() == pytest.approx(slope, rel=1e-5)


def test_snapshots_are_what_a_stream_of_that_length_gives(source: ClipViT) -> None:
    sweep = streamed(source, [4, 9, 12], 5, [SUM, VOTES])
    assert list(sweep) == [4, 9, 12]
    for count, gathered in sweep.items():
        alone = streamed(source, [count], 64, [SUM, VOTES])[count]
        for name in source.state():
            assert_close(gathered[SUM][name], alone[SUM][name], atol=1e-12, rtol=1e-9)
            assert torch.equal(gathered[VOTES][name], alone[VOTES][name])


def test_the_sum_does_not_depend_on_whether_votes_are_counted(source: ClipViT) -> None:
    alone, both = (streamed(source, [9], 4, kinds)[9][SUM] for kinds in ([SUM], [SUM, VOTES]))
    for name in source.state():
        assert_close(alone[name], both[name], atol=1e-12, rtol=1e-9)


def test_the_model_is_left_as_it_was(source: ClipViT) -> None:
    before = {name: tensor.clone() for name, tensor in source.state().items()}
    stream = parameter_gradients(source, [(pictures(4), labels_of(4))], head(source), [SUM], [4])
    next(stream)  # between two snapshots too
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state().items())
    assert not any(p.requires_grad or p.grad is not None for p in source.model.parameters())


def test_broken_streams_are_refused(source: ClipViT) -> None:
    images, labels, classes = pictures(4), labels_of(4), head(source)
    with pytest.raises(CalibrationError, match="past the snapshot at 3"):
        list(parameter_gradients(source, [(images, labels)], classes, [SUM], [3]))
    with pytest.raises(CalibrationError, match="ended after 4 samples, before the snapshot at 5"):
        list(parameter_gradients(source, [(images, labels)], classes, [SUM], [5]))
    with pytest.raises(CalibrationError, match="loss gradient of visual.class_embedding is not finite"):
        list(parameter_gradients(source, [(images * torch.inf, labels)], classes, [SUM], [4]))


def test_a_parameter_that_the_loss_does_not_feel_is_an_error(source: ClipViT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipViT, "loss", lambda self, images, labels, head: self.model.visual.proj.sum())
    with pytest.raises(CalibrationError, match="does not depend on visual.class_embedding"):
        loss_gradients(source, pictures(1), labels_of(1), head(source))


TAU = [1.0, -2.0, 3.0, -4.0, 5.0, 0.0]
DESCENT = [7.0, 1.0, -1.0, -2.0, 0.0, 3.0]
"""Agree, differ, differ, agree, undecided, and nothing to mask."""


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("normal", [1.0, 0.0, 0.0, -4.0, 0.0, 0.0]), ("force", [1.0, 2.0, -3.0, -4.0, 0.0, 0.0])],
)
@pytest.mark.parametrize("vote", ["majority", "mean"])
def test_gradfix_entry_by_entry(mask: str, vote: str, expected: list[float]) -> None:
    descent = {"w": torch.tensor(DESCENT)}
    ours = {"w": torch.tensor(TAU)}
    given = {VOTES: descent} if vote == "majority" else {SUM: {"w": -descent["w"]}}  # a gradient points uphill
    method = get_method(f"gradfix:mask={mask}:vote={vote}")
    assert method.needs == Needs(gradients=frozenset(given))
    vector = method.transport(ours, Pair([], [], ours, ours), Gathered(samples=4, gradients=given))
    assert vector["w"].tolist() == expected


def test_votes_and_the_mean_may_disagree() -> None:
    """Two samples that want it a little higher against one that wants it much lower."""
    tau, single = {"w": torch.tensor([1.0])}, torch.tensor([-1.0, -1.0, 5.0])
    gathered = Gathered(3, gradients={VOTES: {"w": (-single).sign().sum()[None]}, SUM: {"w": single.sum()[None]}})
    pair = Pair([], [], tau, tau)
    assert get_method("gradfix:vote=majority").transport(tau, pair, gathered)["w"].item() == 1
    assert get_method("gradfix:vote=mean").transport(tau, pair, gathered)["w"].item() == 0


def test_gradfix_drops_about_half_of_a_random_vector(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    kept = carried(METHODS["gradfix"](), source, target, tau, count=7)
    share = sum(int((t != 0).sum()) for t in kept.values()) / sum(t.numel() for t in kept.values())
    assert 0.4 < share < 0.6
    forced = carried(get_method("gradfix:mask=force"), source, target, tau, count=7)  # odd: no even split
    for name, tensor in without_key_biases(forced).items():
        assert torch.equal(tensor.abs(), without_key_biases(tau)[name].abs())


def test_few_shot_is_the_first_step_of_adamw(source: ClipViT, target: ClipViT) -> None:
    vector = carried(get_method("few-shot:lr=1e-3"), source, target, random_task_vector(source))
    before = {name: tensor.clone() for name, tensor in target.state().items()}
    leaves = [leaf.requires_grad_() for leaf in target.trainable()]
    optimiser = torch.optim.AdamW(leaves, lr=1e-3, weight_decay=0.1)
    (target.loss(pictures(40), labels_of(40), head(target)) / 40).backward()
    optimiser.step()
    step = {name: tensor - before[name] for name, tensor in target.state().items()}
    for name, tensor in without_key_biases(step).items():
        assert_close(without_key_biases(vector)[name], tensor, atol=1e-8, rtol=1e-5)


def test_few_shot_does_not_look_at_the_expert(source: ClipViT, target: ClipViT) -> None:
    one, two = (carried(METHODS["few-shot"](), source, target, random_task_vector(source, s)) for s in (3, 4))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_small_step_downhill_lowers_the_loss(source: ClipViT, target: ClipViT) -> None:
    images, labels, classes = pictures(40), labels_of(40), head(target)

    def loss() -> Tensor:
        return target.loss(images, labels, classes)

    before = loss()
    with target.updated(carried(get_method("few-shot:lr=1e-4"), source, target, {})):
        assert loss() < before
