import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from bico.calibration.signals import Signal, capture, signal_key
from bico.errors import CalibrationError, CheckpointError, ShapeError
from bico.models.clip.vit import ClipViT
from tests.tiny import head, pictures, random_task_vector, tiny_clip

ALL = list(Signal)


def test_instrumented_and_plain_compute_the_same(source: ClipViT) -> None:
    images = pictures(3)
    plain = source.features(images)
    parameters = {name: id(p) for name, p in source.model.named_parameters()}
    with source.instrument() as modules:
        assert set(modules) == {site.name for site in source.sites}
        assert_close(source.features(images), plain)
    assert torch.equal(source.features(images), plain)  # put back
    assert {name: id(p) for name, p in source.model.named_parameters()} == parameters


def test_every_site_computes_its_weight_times_its_input(source: ClipViT, labels: torch.Tensor) -> None:
    state = source.state()
    with source.instrument() as modules, capture(source.sites, modules, ALL) as seen:
        source.loss(pictures(12), labels, head(source)).backward()
    for site in source.sites:
        x, y = seen[signal_key(site, Signal.INPUT)], seen[signal_key(site, Signal.OUTPUT)]
        bias = None if site.bias is None else site.bias.read(state)
        assert_close(F.linear(x, site.weight.read(state), bias), y)


def test_captured_gradients_make_the_parameters_gradients(source: ClipViT, labels: torch.Tensor) -> None:
    """dL/dW = Σ g xᵀ and dL/db = Σ g: the bilinear form that the method rests on, against plain autograd."""
    images, classes = pictures(12), head(source)
    with source.instrument() as modules, capture(source.sites, modules, ALL) as seen:
        source.loss(images, labels, classes).backward()
    assert all(p.grad is None for p in source.model.parameters())  # parameter gradients are never computed
    source.model.visual.requires_grad_(True)
    source.loss(images, labels, classes).backward()
    grads = {"visual." + name: p.grad for name, p in source.model.visual.named_parameters()}
    for site in source.sites:
        x = seen[signal_key(site, Signal.INPUT)].flatten(0, -2)
        g = seen[signal_key(site, Signal.OUTPUT_GRAD)].flatten(0, -2)
        assert_close(g.T @ x, site.weight.read(grads))
        if site.bias is not None:
            assert_close(g.sum(0), site.bias.read(grads))


def test_input_gradient_is_the_sum_over_the_sites_that_read_it(source: ClipViT, labels: torch.Tensor) -> None:
    state = source.state()
    with source.instrument() as modules, capture(source.sites, modules, ALL) as seen:
        source.loss(pictures(12), labels, head(source)).backward()
    for reads in {site.reads for site in source.sites}:
        total = sum(
            seen[signal_key(site, Signal.OUTPUT_GRAD)] @ site.weight.read(state)
            for site in source.sites
            if site.reads == reads
        )
        assert_close(seen[(reads, Signal.INPUT_GRAD)], total)


def test_a_module_that_is_never_called_is_an_error(source: ClipViT) -> None:
    """The classic silent failure: PyTorch's fused attention does not call its own out_proj."""
    site = next(s for s in source.sites if s.role == "out_proj")
    fused = {site.name: source.model.visual.transformer.resblocks[0].attn.out_proj}
    with pytest.raises(CalibrationError, match=r"1 signals were never seen.*output of blocks\.0\.out_proj"):
        with capture([site], fused, [Signal.OUTPUT]):
            source.features(pictures(2))


def test_a_missing_backward_pass_is_an_error(source: ClipViT) -> None:
    with pytest.raises(CalibrationError, match="output_grad of blocks.0.q"):
        with source.instrument() as modules, capture(source.sites, modules, [Signal.OUTPUT_GRAD]):
            source.features(pictures(2))


def test_hooks_are_gone_afterwards(source: ClipViT, labels: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="in the middle"):
        with source.instrument() as modules, capture(source.sites, modules, ALL):
            raise RuntimeError("in the middle")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in source.model.modules())
    assert isinstance(source.model.visual.transformer.resblocks[0].attn, nn.MultiheadAttention)


def test_updated_adds_and_restores_to_the_bit(source: ClipViT) -> None:
    before = {k: v.clone() for k, v in source.state().items()}
    vector = random_task_vector(source)
    with source.updated(vector, alpha=0.5):
        for name, tensor in source.state().items():
            assert_close(tensor, before[name] + 0.5 * vector[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state().items())


def test_updated_refuses_what_does_not_fit(source: ClipViT) -> None:
    with pytest.raises(CheckpointError, match="no parameter|lacks: 'visual.nowhere'"):
        with source.updated({"visual.nowhere": torch.zeros(3)}):
            pass


def test_pictures_of_another_size_are_refused(source: ClipViT) -> None:
    with pytest.raises(ShapeError, match=r"\(3, 12, 12\), got \(3, 16, 16\)"):
        source.features(pictures(1, image=16))


def test_the_head_is_normalised_and_ordered_by_class(source: ClipViT) -> None:
    rows = head(source)
    assert_close(rows.norm(dim=1), torch.ones(5).double())
    swapped = source.head(["class 1", "class 0"], ["a {}", "the {}."])
    assert_close(swapped, rows[[1, 0]])


def test_the_loss_is_summed(source: ClipViT, labels: torch.Tensor) -> None:
    images, classes = pictures(12), head(source)
    halves = sum(source.loss(images[s], labels[s], classes) for s in (slice(0, 5), slice(5, 12)))
    assert_close(source.loss(images, labels, classes), halves)


def test_a_tower_of_another_kind_is_refused() -> None:
    model = tiny_clip(1).model
    model.visual = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="not a standard ViT"):
        ClipViT(model, None, None, name="odd")


def test_attention_that_takes_tokens_first_is_refused() -> None:
    model = tiny_clip(1).model
    model.visual.transformer.resblocks[1].attn = nn.MultiheadAttention(16, 2)
    with pytest.raises(CheckpointError, match=r"odd: its attention takes \(tokens, batch, features\)"):
        ClipViT(model, None, None, name="odd")


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_clip(1).model
    model.visual.conv1.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"odd: parameter visual\.conv1\.weight holds NaN"):
        ClipViT(model, None, None, name="odd")
