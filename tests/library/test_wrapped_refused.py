"""What of a module of one's own, its loss or its data is refused, and how that is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bico import batches, get_method, transfer, wrap
from bico.calibration.covariances import Batch
from bico.errors import BicoError, CalibrationError, CheckpointError, MethodError
from tests.tiny import tiny_clip
from tests.tiny_module import CLASSES, INPUTS, net, samples, summed, vector_of


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
