"""A module of one's own as source and target: what is found in it, what is refused, and that planted answers come back."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from bico import batches, get_method, transfer, wrap
from bico.calibration.covariances import Batch, cross_covariances
from bico.calibration.signals import Signal
from bico.errors import BicoError, CalibrationError, CheckpointError, MethodError
from bico.models.protocol import Calibratable, Model
from bico.models.wrapped import Wrapped
from bico.task_vector import add, norm
from tests.tiny import tiny_clip

CLASSES, INPUTS = 5, 12
summed = nn.CrossEntropyLoss(reduction="sum")


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, conv: bool) -> None:
        super().__init__()
        linear = (lambda a, b: nn.Conv2d(a, b, 1)) if conv else nn.Linear
        self.up, self.down = linear(width, hidden), linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """A residual network over rows, or over the pixels of a picture."""

    def __init__(self, width: int = 12, depth: int = 2, conv: bool = False, hidden: int = 12) -> None:
        super().__init__()
        self.conv = conv
        self.embed = nn.Conv2d(INPUTS, width, 1) if conv else nn.Linear(INPUTS, width)
        self.blocks = nn.ModuleList(Block(width, hidden, conv) for _ in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)) if self.conv else x)


def net(seed: int = 0, **shape: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**shape).double()


def samples(count: int = 200, conv: bool = False, seed: int = 0) -> list[Batch]:
    torch.manual_seed(seed)
    inputs = torch.randn(count, INPUTS, 3, 4) if conv else torch.randn(count, INPUTS)
    return [Batch(inputs.double(), inputs.double(), torch.arange(count) % CLASSES)]


def vector_of(model: Wrapped, seed: int = 5, size: float = 0.3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: size * torch.randn_like(tensor) for name, tensor in model.state().items()}


def rotation(size: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]


def rotated(module: Net, stream: Tensor, hidden: Tensor) -> Net:
    """The same function in other coordinates: the residual stream turned, the hidden features permuted."""
    turned = copy.deepcopy(module)

    def change(linear: nn.Module, out: Tensor | None, inside: Tensor | None) -> None:
        weight = linear.weight.data.flatten(1)
        weight = weight if inside is None else weight @ inside
        weight = weight if out is None else out.T @ weight
        linear.weight.data.copy_(weight.reshape(linear.weight.shape))
        if out is not None:
            linear.bias.data.copy_(linear.bias.data @ out)

    change(turned.embed, stream, None)
    for block in turned.blocks:
        change(block.up, hidden, stream)
        change(block.down, stream, hidden)
    change(turned.head, None, stream)
    return turned


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


class Attention(nn.Module):
    """One head; q, k and v read the very same tensor."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        scores = scores if bias is None else scores + bias[:, None, None]
        return self.head((x + self.o(scores.softmax(-1) @ self.v(x))).mean(1))


def attention(seed: int, width: int = 8) -> Attention:
    torch.manual_seed(seed)
    return Attention(width).double()


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


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.embed(x)))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Odd(nn.Module):
    """Calls `fc` as often as asked, by keyword if asked, and never `idle`."""

    def __init__(self, times: int = 1, keyword: bool = False) -> None:
        super().__init__()
        self.fc, self.head, self.idle = (nn.Linear(INPUTS, n) for n in (INPUTS, CLASSES, 6))
        self.times, self.keyword = times, keyword
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.fc(input=x) if self.keyword else self.fc(x)
        return self.head(x)


def quantised() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, CLASSES))
    module[0].weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.int8), requires_grad=False)
    return module


def broken() -> nn.Module:
    module = net()
    module.head.bias.data[0] = torch.nan
    return module


REFUSED = {
    "tied": (Tied, {}, "embed.weight and head.weight are one tied parameter"),
    "shared": (Shared, {}, "a and b are one and the same module"),
    "quantised": (quantised, {}, "0.weight is torch.int8, a quantised weight"),
    "parametrised": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))), {}, "no parameter of its own"),
    "fused attention": (lambda: nn.TransformerEncoderLayer(8, 2), {}, "self_attn is an nn.MultiheadAttention"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), {}, "0.weight has no shape yet"),
    "nothing linear": (lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(4, 4, 1, groups=2)), {}, "no linear map that"),
    "unknown site": (net, {"sites": ["blocks.0.upp"]}, "did you mean 'blocks.0.up'"),
    "not finite": (broken, {}, "head.bias holds NaN"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_wrapped_is_named(what: str) -> None:
    make, given, message = REFUSED[what]
    with pytest.raises(CheckpointError, match=message):
        wrap(make(), summed, **given)


def test_what_cannot_take_part_may_be_left_out() -> None:
    assert [site.name for site in wrap(Tied(), summed, sites=["fc"]).sites] == ["fc"]
    encoder = wrap(nn.TransformerEncoderLayer(8, 2), summed, sites=["linear1", "linear2"])
    assert [site.role for site in encoder.sites] == ["linear1", "linear2"]
    assert "head.weight" not in wrap(Tied(), summed, sites=["fc"]).state()  # a tied parameter has one name


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Odd(), "idle is not called"),
        (Odd(times=2), "fc is called 2 times"),
        (Odd(keyword=True), "fc is given its input by keyword"),
    ],
)
def test_an_example_finds_what_is_not_called_once(module: nn.Module, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        wrap(module, summed, example=torch.randn(2, INPUTS).double())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Odd(), "idle: its module was not called"),
        (Odd(times=2), "site fc is called more than once"),
        (Odd(keyword=True), "site fc is given its input by keyword"),
    ],
)
@pytest.mark.parametrize("method", ["bico", "theseus", "gradient-only"])
def test_without_an_example_the_pass_finds_it(module: nn.Module, message: str, method: str) -> None:
    model = wrap(module, summed)
    with pytest.raises(CalibrationError, match=message):
        transfer(vector_of(model), model, model, samples(10), method=get_method(method))


MISTAKES = {
    "mean": (nn.CrossEntropyLoss(), "must be summed over samples"),
    "per sample": (nn.CrossEntropyLoss(reduction="none"), r"a tensor of shape \(200,\)"),
    "a number": (lambda output, labels: float(summed(output, labels).detach()), "gives a float"),
    "contrastive": (lambda output, labels: -(output @ output.T).log_softmax(1).diag().sum(), "must be summed over samples"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_loss_that_does_not_add_up_is_refused(what: str) -> None:
    loss, message = MISTAKES[what]
    model = wrap(net(), loss)
    with pytest.raises(CalibrationError, match=message):
        transfer(vector_of(model), model, model, samples())


def test_training_mode_is_refused() -> None:
    model = wrap(net(), summed)
    model.module.blocks[0].train()
    with pytest.raises(CalibrationError, match=r"training mode.*call \.eval"):
        transfer(vector_of(model), model, model, samples())


def test_another_number_of_rows_names_the_site_and_both_counts() -> None:
    model, (batch,) = wrap(net(conv=True), summed), samples(10, conv=True)
    data = [Batch(batch.source, F.interpolate(batch.source, (2, 2)), batch.labels)]
    with pytest.raises(CalibrationError, match=r"input of embed has 40 rows \(10 x 2 x 2\).* 120 rows \(10 x 3 x 4\)"):
        transfer(vector_of(model), model, model, data)


def test_a_tensor_changed_in_place_after_it_was_measured_is_noticed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            y += x
            return self.head(y)

    model = wrap(InPlace().double(), summed)
    with pytest.raises(CalibrationError, match="output of fc in place after it was measured"):
        transfer(vector_of(model), model, model, samples(10), method=get_method("theseus"))
    with pytest.raises(CalibrationError, match="changes the output of a site in place"):
        transfer(vector_of(model), model, model, samples(10))


def test_a_bias_that_would_be_lost_is_refused_and_one_that_nobody_changed_stays() -> None:
    with_bias, without = (
        wrap(nn.Sequential(nn.Linear(INPUTS, CLASSES, bias=b)).double(), summed) for b in (True, False)
    )
    with pytest.raises(MethodError, match="has a bias in the source and none in the target"):
        transfer(vector_of(with_bias), with_bias, without, samples(10))
    carried = transfer(vector_of(without), without, with_bias, samples(10))
    assert carried["0.weight"].any() and not carried["0.bias"].any()


def test_other_roles_are_refused() -> None:
    small = wrap(nn.Sequential(nn.Linear(INPUTS, CLASSES)).double(), summed)
    with pytest.raises(MethodError, match=r"role embed\) has no counterpart"):
        transfer(vector_of(small), small, wrap(net(), summed), samples(10))
    with pytest.raises(MethodError, match="must be of the same family"):
        transfer({}, small, tiny_clip(1), samples(10))


def test_heads_are_for_models_that_take_them() -> None:
    model, clip = wrap(net(), summed), tiny_clip(1)
    with pytest.raises(CalibrationError, match="takes no classification head"):
        transfer(vector_of(model), model, model, samples(10), (torch.zeros(2, 2), torch.zeros(2, 2)))
    with pytest.raises(CalibrationError, match="tiny-1 takes its loss in a classification head"):
        transfer({}, clip, clip, samples(10))


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


WRONG_DATA = {
    "shuffled": (lambda d: DataLoader(d, batch_size=10, shuffle=True, generator=torch.Generator().manual_seed(1)), "other labels"),
    "other batches": (lambda d: DataLoader(d, batch_size=4), "other labels"),
    "too few": (lambda d: [], "target's data end after 0 batches"),
    "no pair": (lambda d: [torch.zeros(10, 6)], "is a Tensor, not a pair"),
    "a triple": (lambda d: [(torch.zeros(10, 6), torch.zeros(10), torch.arange(10))], "is a tuple, not a pair"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_DATA)
def test_data_that_do_not_belong_together_are_refused(what: str) -> None:
    change, message = WRONG_DATA[what]
    data = TensorDataset(torch.randn(10, 6), torch.arange(10))
    with pytest.raises(CalibrationError, match=message):
        batches(DataLoader(data, batch_size=10), change(data))


def test_no_samples_are_refused() -> None:
    with pytest.raises(CalibrationError, match="nothing to calibrate with"):
        batches([])


def test_strange_things_in_a_batch_are_named() -> None:
    model = wrap(net(), summed)
    with pytest.raises(BicoError, match="A batch holds a str"):
        transfer(vector_of(model), model, model, [Batch(("words",), ("words",), torch.arange(1))])
