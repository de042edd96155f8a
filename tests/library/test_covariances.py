import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.signals import Signal, capture, signal_key
from bico.calibration.token_grids import resample_tokens
from bico.errors import CalibrationError, ShapeError
from bico.models.clip.vit import ClipViT
from tests.tiny import count_passes, covariances_of, head, pictures, tiny_clip

ALL = list(Signal)


def test_resampling_keeps_the_class_token_and_planes() -> None:
    down, across = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    tokens = torch.cat([torch.tensor([[7.0, 8.0]]), torch.stack([down.flatten(), across.flatten()], 1)])[None]
    small = resample_tokens(tokens, (4, 4), (2, 2))
    assert torch.equal(small[0, 0], tokens[0, 0])
    # the centre of a 2x2 cell of a linear ramp is the mean of its four patches
    assert_close(small[0, 1:], torch.tensor([[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]))
    assert resample_tokens(tokens, (4, 4), (4, 4)) is tokens


def test_resampling_distinguishes_down_from_across() -> None:
    tokens = torch.zeros(1, 1 + 2 * 3, 1)
    tokens[0, 1:4] = 1.0  # the upper row of a 2x3 grid
    tall = resample_tokens(tokens, (2, 3), (4, 3))[0, 1:, 0].reshape(4, 3)
    assert (tall[0] == 1).all() and (tall[3] == 0).all()


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(ShapeError, match="8 tokens are not one class token and a 2x4"):
        resample_tokens(torch.zeros(1, 8, 2), (2, 4), (3, 3))


def _literal(source: ClipViT, target: ClipViT, labels: Tensor, site: str, signal: Signal) -> Tensor:
    """The covariance of one site from its definition, without streaming, sharing or dropping."""
    rows = []
    for model in (source, target):
        one = next(s for s in model.sites if s.name == site)
        readers = [s for s in model.sites if s.reads == one.reads]
        with model.instrument() as modules, capture(readers, modules, [signal, Signal.OUTPUT_GRAD]) as seen:
            model.loss(pictures(len(labels)), labels, head(model)).backward()
        rows.append(seen[signal_key(one, signal)].flatten(0, -2))
    return sum(torch.outer(a, b) for a, b in zip(*rows, strict=True))


@pytest.mark.parametrize("signal", ALL)
@pytest.mark.parametrize("site", ["blocks.0.v", "blocks.1.c_fc", "blocks.1.q", "proj"])
def test_covariances_are_the_sum_of_outer_products(
    source: ClipViT, target: ClipViT, labels: Tensor, site: str, signal: Signal
) -> None:
    streamed = covariances_of(source, target, labels, ALL, [12], batch_size=5)[12]
    one = next(s for s in target.sites if s.name == site)
    assert_close(streamed[signal_key(one, signal)], _literal(source, target, labels, site, signal))


def test_batch_size_and_snapshots_change_nothing(source: ClipViT, target: ClipViT, labels: Tensor) -> None:
    at_once = covariances_of(source, target, labels, ALL, [12])[12]
    streamed = covariances_of(source, target, labels, ALL, [4, 12], batch_size=3)
    first = covariances_of(source, target, labels[:4], ALL, [4])[4]
    assert set(streamed) == {4, 12}
    for key, value in at_once.items():
        assert_close(streamed[12][key], value)
        assert_close(streamed[4][key], first[key])
        assert not torch.allclose(streamed[4][key], value)


def test_halves_add_up_in_float32(labels: Tensor) -> None:
    models = tiny_clip(1, torch.float32), tiny_clip(2, torch.float32)
    heads = tuple(head(m) for m in models)
    images = pictures(12).float()

    def sums(part: slice) -> dict:
        batches = [Batch(images[part], images[part], labels[part])]
        return next(cross_covariances(*models, batches, heads, ALL, [len(labels[part])]))[1]

    whole, one, two = sums(slice(0, 12)), sums(slice(0, 6)), sums(slice(6, 12))
    for key in whole:
        assert (whole[key] - one[key] - two[key]).norm() <= 1e-6 * whole[key].norm()


def test_one_forward_and_one_backward_pass_per_model_and_batch(
    source: ClipViT, target: ClipViT, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_passes(monkeypatch)
    covariances_of(source, target, labels, ALL, [4, 8, 12], batch_size=4)  # three batches, three snapshots
    assert counts == {"forward": 6, "backward": 6}


def test_signals_without_gradients_need_no_backward(
    source: ClipViT, target: ClipViT, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "backward", lambda *_: pytest.fail("a backward pass for activations alone"))
    covariances_of(source, target, labels, [Signal.INPUT, Signal.OUTPUT], [12])


def test_token_counts_and_depths_may_differ(labels: Tensor) -> None:
    source, target = tiny_clip(1), tiny_clip(2, width=24, layers=3, image=16)
    sums = covariances_of(source, target, labels, ALL, [12])[12]
    assert sums[("blocks.2.c_fc", Signal.OUTPUT_GRAD)].shape == (64, 96)
    assert sums[("pooled", Signal.INPUT)].shape == (16, 24)
    assert all(value.any() for value in sums.values())


def test_the_last_blocks_gradients_have_rank_at_most_the_samples(source: ClipViT, target: ClipViT) -> None:
    labels = torch.arange(6) % 5
    sums = covariances_of(source, target, labels, [Signal.OUTPUT_GRAD], [6])[6]
    for role in ("q", "out_proj", "c_fc", "c_proj"):
        assert torch.linalg.matrix_rank(sums[(f"blocks.1.{role}", Signal.OUTPUT_GRAD)]) <= 6
    assert torch.linalg.matrix_rank(sums[("blocks.0.c_fc", Signal.OUTPUT_GRAD)]) > 6


def test_a_snapshot_that_batches_step_over_is_an_error(source: ClipViT, target: ClipViT, labels: Tensor) -> None:
    batch = Batch(pictures(12), pictures(12), labels)
    with pytest.raises(CalibrationError, match="past the snapshot at 5"):
        list(cross_covariances(source, target, [batch], (head(source), head(target)), ALL, [5]))


def test_batches_that_end_early_are_an_error(source: ClipViT, target: ClipViT, labels: Tensor) -> None:
    batch = Batch(pictures(12), pictures(12), labels)
    with pytest.raises(CalibrationError, match="ended after 12 samples, before the snapshot at 20"):
        list(cross_covariances(source, target, [batch], (head(source), head(target)), ALL, [12, 20]))


def test_inputs_that_are_not_finite_are_an_error(source: ClipViT, target: ClipViT, labels: Tensor) -> None:
    images = pictures(12)
    images[3] = torch.inf
    batch = Batch(images, images, labels)
    with pytest.raises(CalibrationError, match="covariance of .* is not finite"):
        list(cross_covariances(source, target, [batch], (head(source), head(target)), ALL, [12]))


@given(st.integers(1, 60), st.integers(1, 20), st.sets(st.integers(1, 60)))
def test_split_at_covers_everything_and_stops_at_every_snapshot(count: int, size: int, marks: set[int]) -> None:
    marks = {m for m in marks if m <= count}
    slices = list(split_at(count, size, marks))
    assert [s.start for s in slices] == [0, *[s.stop for s in slices[:-1]]]
    assert slices[-1].stop == count and all(0 < s.stop - s.start <= size for s in slices)
    assert marks <= {s.stop for s in slices}
