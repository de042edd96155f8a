"""A module of one's own as source and target: what is found in it, and that planted answers come back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from bico import batches, get_method, transfer, wrap
from bico.calibration.covariances import Batch, cross_covariances
from bico.calibration.signals import Signal
from bico.errors import CalibrationError
from bico.models.protocol import Calibratable, Model
from bico.models.wrapped import Wrapped
from bico.task_vector import add, norm
from tests.tiny import tiny_clip
from tests.tiny_module import CLASSES, INPUTS, Block, attention, net, rotated, rotation, samples, summed, vector_of


@pytest.mark.parametrize("conv", [False, True], ids=["dense", "1x1 convolutions"])
def test_an_update_carried_to_a_turned_copy_does_there_what_it_did_at_home(conv: bool) -> None:
    first = net(1, conv=conv)
    other = rotated(first, rotation(12, 2), torch.eye(12, dtype=torch.float64)[torch.randperm(12)])
    source, target = wrap(first, summed), wrap(other, summed)
    (batch,) = samples(conv=conv)
    assert_close(source(batch.source), target(batch.target))
    tau = vector_of(source)
    with source.updated(tau):
        wanted = source(batch.source)
    assert (wanted - source(batch.source)).norm() > 0.5 * wanted.norm()
    moved = transfer(tau, source, target, [batch], method=get_method("theseus"))
    with target.updated(moved):
        assert_close(target(batch.target), wanted)


@pytest.mark.parametrize("conv", [False, True], ids=["dense", "1x1 convolutions"])
def test_what_the_loss_feels_of_a_small_update_arrives_by_gradients_too(conv: bool) -> None:
    """Directions without gradient change no loss to first order, and BiCo leaves them out."""
    first = net(1, conv=conv)
    other = rotated(first, rotation(12, 2), torch.eye(12, dtype=torch.float64)[torch.randperm(12)])
    source, target = wrap(first, summed), wrap(other, summed)
    (batch,) = samples(conv=conv)
    tau = vector_of(source, size=1e-4)
    changes = []
    for model, vector in ((source, tau), (target, transfer(tau, source, target, [batch]))):
        before = model(batch.source).log_softmax(1)
        with model.updated(vector):
            changes.append(model(batch.source).log_softmax(1) - before)
    assert (changes[0] - changes[1]).norm() < 0.01 * changes[0].norm()


@pytest.mark.parametrize("conv", [False, True])
def test_carried_to_itself_an_update_comes_back(conv: bool) -> None:
    source = wrap(net(conv=conv), summed)
    tau = vector_of(source)
    moved = transfer(tau, source, source, samples(conv=conv), method=get_method("theseus"))
    for name, tensor in tau.items():
        assert_close(moved[name], tensor, msg=name)


@pytest.mark.parametrize("conv", [False, True])
def test_batches_change_nothing(conv: bool) -> None:
    source, target = wrap(net(1, conv=conv), summed), wrap(net(2, width=14, depth=3, conv=conv), summed)
    (whole,) = samples(conv=conv)
    parts = [Batch(whole.source[i : i + 7], whole.target[i : i + 7], whole.labels[i : i + 7]) for i in range(0, 200, 7)]
    tau = vector_of(source)
    one, many = (transfer(tau, source, target, found) for found in ([whole], parts))
    for name, tensor in one.items():
        assert_close(many[name], tensor)
        assert tensor.shape == target.state()[name].shape and tensor.any()


def test_rows_of_a_convolution_are_its_pixels() -> None:
    model = wrap(net(conv=True), summed)
    (batch,) = samples(20, conv=True)
    ((_, found),) = cross_covariances(model, model, [batch], (None, None), [Signal.INPUT, Signal.OUTPUT], [20])
    rows = batch.source.permute(0, 2, 3, 1).reshape(-1, INPUTS)
    assert_close(found["input of embed", Signal.INPUT], rows.T @ rows)
    given = rows @ model.module.embed.weight.flatten(1).T + model.module.embed.bias
    assert_close(found["embed", Signal.OUTPUT], given.T @ given)


def test_blocks_are_found_by_the_number_in_the_path_and_matched_stack_by_stack() -> None:
    class Two(nn.Module):
        def __init__(self, left: int, right: int) -> None:
            super().__init__()
            self.left = nn.Sequential(*[m for _ in range(left) for m in (nn.Linear(6, 6), nn.ReLU())])
            self.right = nn.ModuleDict({"layers": nn.ModuleList(Block(6, 8, conv=False) for _ in range(right))})

        def forward(self, x: Tensor) -> Tensor:
            x = self.left(x)
            for block in self.right["layers"]:
                x = block(x)
            return x

    source, target = wrap(Two(2, 3), summed), wrap(Two(3, 2), summed)
    places = {(site.stack, site.block, site.role, site.group) for site in source.sites}
    assert places == {
        *(("left", n, "left.*", f"left-block-{n}") for n in (0, 2)),
        *(("right.layers", n, f"right.layers.*.{r}", f"right.layers-block-{n}") for n in range(3) for r in ("up", "down")),
    }  # fmt: skip
    from bico.models.matching import match_sites

    matched = {name: site.name for name, site in match_sites(source.sites, target.sites).items()}
    assert [matched[f"left.{n}"] for n in (0, 2, 4)] == ["left.0", "left.2", "left.2"]
    assert [matched[f"right.layers.{n}.up"] for n in (0, 1)] == ["right.layers.0.up", "right.layers.2.up"]
    assert not {site.group for site in source.sites} & {"head", "block-0"}


def test_what_is_wrapped_is_calibratable_and_no_model_with_heads_and_tasks() -> None:
    model = wrap(net(), summed, name="mine")
    assert isinstance(model, Calibratable) and not isinstance(model, Model)
    assert isinstance(tiny_clip(1), Model) and isinstance(tiny_clip(1), Calibratable)
    assert repr(model) == "mine: Net with 6 sites"
    assert not any(p.requires_grad or model.module.training for p in model.module.parameters())


def test_an_example_shows_what_reads_the_same_tensor_and_changes_no_result() -> None:
    inputs = torch.randn(50, 4, 8).double()
    data = [Batch(inputs, inputs, torch.arange(50) % CLASSES)]
    alone = [wrap(attention(seed), summed) for seed in (1, 2)]
    together = [wrap(attention(seed), summed, example=inputs[:2]) for seed in (1, 2)]
    assert [site.reads for site in together[0].sites[:4]] == ["input of q"] * 3 + ["input of o"]
    assert len({site.reads for site in alone[0].sites}) == 5
    tau = vector_of(alone[0])
    for method in ("bico", "gradient-only"):
        one, other = (transfer(tau, *pair, data, method=get_method(method)) for pair in (alone, together))
        for name, tensor in one.items():
            assert_close(other[name], tensor)
    with pytest.raises(CalibrationError, match="give both models the `example`"):
        transfer(tau, alone[0], together[1], data)
    transfer(tau, together[0], alone[1], data)


def test_inputs_may_be_several_tensors() -> None:
    inputs, bias = torch.randn(30, 4, 8).double(), torch.randn(30).double()
    labels = torch.arange(30) % CLASSES
    source, target = wrap(attention(1), summed, example=(inputs, bias)), wrap(attention(2), summed, example=[inputs])
    data = batches([((inputs, bias), labels)], [({"x": inputs, "bias": bias}, labels)])
    tau = vector_of(source)
    for method in ("bico", "gradfix"):  # gradfix takes batches apart
        moved = transfer(tau, source, target, data, method=get_method(method))
        assert norm(moved) > 0


def test_calibration_leaves_the_caller_alone() -> None:
    module = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)).double()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model, (batch,) = wrap(module, summed), samples()
    kept = batch.source.clone()
    transfer(vector_of(model), model, model, [batch], method=get_method("gradient-only"))
    assert torch.equal(batch.source, kept) and not batch.source.requires_grad
    assert module[1].inplace and all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_activations_in_place_overwrite_nothing_that_is_measured() -> None:
    def made(inplace: bool) -> Wrapped:
        torch.manual_seed(3)
        layers = nn.Linear(INPUTS, 8), nn.ReLU(inplace=inplace), nn.Linear(8, CLASSES)
        return wrap(nn.Sequential(*layers).double(), summed)

    tau = vector_of(made(False))
    for method in ("bico", "theseus"):
        found = [transfer(tau, made(x), made(x), samples(), method=get_method(method)) for x in (False, True)]
        assert all(torch.equal(found[0][name], found[1][name]) for name in tau)


def test_half_precision_is_summed_in_single() -> None:
    model = wrap(net().bfloat16(), summed)
    (batch,) = samples(2000)
    (found,) = [
        value
        for _, sums in cross_covariances(
            model, model, [Batch(batch.source.bfloat16(), batch.source.bfloat16(), batch.labels)], (None, None),
            [Signal.INPUT], [2000], [model.sites[0]],
        )
        for value in sums.values()
    ]  # fmt: skip
    rows = batch.source.bfloat16().float()
    assert found.dtype == torch.float32
    assert_close(found, rows.T @ rows, rtol=1e-5, atol=1e-2)  # halves would be wrong by 10 here


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_the_updated_module_is_saved_and_read_again(tmp_path: Path, form: str) -> None:
    source, module = wrap(net(1), summed), net(2, width=14)
    target, (batch,) = wrap(module, summed), samples()
    moved = transfer(vector_of(source), source, target, [batch])
    with target.updated(moved):
        wanted = target(batch.target)
    state, file = add(module.state_dict(), moved), tmp_path / "file"
    torch.save(state, file) if form == "torch" else save_file(state, file)
    again = net(3, width=14)
    again.load_state_dict(torch.load(file, weights_only=True) if form == "torch" else load_file(file))
    assert_close(again(batch.target), wanted)


def test_padding_is_left_out() -> None:
    inputs, labels = torch.randn(30, 4, 8).double(), torch.arange(30) % CLASSES
    real = torch.arange(4) < torch.arange(1, 31)[:, None] % 4 + 1
    inputs[~real] = 0
    model = wrap(attention(1), summed, mask=lambda x: x.any(-1))
    signals, data = [Signal.OUTPUT], [Batch(inputs, inputs, labels)]
    ((_, found),) = cross_covariances(model, model, data, (None, None), signals, [30])
    rows = model.module.q(inputs[real])
    assert_close(found["q", Signal.OUTPUT], rows.T @ rows)
    wrong = wrap(attention(1), summed, mask=lambda x: x[:, :2].any(-1))
    with pytest.raises(CalibrationError, match="does not fit the mask"):
        transfer(vector_of(wrong), wrong, wrong, data)


def test_batches_pair_what_two_loaders_give() -> None:
    small, large, labels = torch.randn(10, 6), torch.randn(10, 8), torch.arange(10)
    ours, theirs = TensorDataset(small, labels), TensorDataset(large, labels)
    for found in (
        batches(ours, theirs, batch_size=4),
        batches(DataLoader(ours, batch_size=4), DataLoader(theirs, batch_size=4)),
    ):
        assert [len(batch.labels) for batch in found] == [4, 4, 2]
        assert torch.equal(torch.cat([batch.source for batch in found]), small)
        assert torch.equal(torch.cat([batch.target for batch in found]), large)
    (alone,) = batches(ours)
    assert alone.source is alone.target and torch.equal(alone.labels, labels)
