"""What calibration holds in memory: planned from shapes, and counted while it runs."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import bico.calibration.covariances
from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.memory import GIGABYTE, covariance_bytes, covariance_shapes, plan_memory, signal_bytes
from bico.calibration.signals import Signal
from bico.errors import ConfigError
from bico.models.clip.vit import ClipViT
from bico.models.protocol import Model
from tests.tiny import count_passes, covariances_of, head, pictures, tiny_clip
from tests.tiny_t5 import tiny_t5

BICO = [Signal.INPUT, Signal.OUTPUT_GRAD]


def test_sizes_are_those_worked_out_by_hand(source: ClipViT, target: ClipViT) -> None:
    """Width 16, MLP 64, two blocks, embedding 8, 3x3 patches and a class token."""
    block = [site for site in target.sites if site.block == 0]
    shapes = covariance_shapes(source.sites, target.sites, block, BICO)
    # inputs: of attention (q, k, v share it), out_proj and c_fc 16 wide, of c_proj 64; outputs: q k v out_proj c_proj 16, c_fc 64
    assert sorted(shapes.values()) == [(16, 16)] * 8 + [(64, 64)] * 2
    assert covariance_bytes(source.sites, target.sites, block, BICO) == 4 * (8 * 256 + 2 * 4096)
    # inputs of two blocks at ten tokens, and of `proj`, which reads the pooled token
    assert signal_bytes(source, [Signal.INPUT]) == 4 * (2 * 10 * (3 * 16 + 64) + 16)
    # outputs: 8 wide behind the last block
    assert signal_bytes(source, [Signal.OUTPUT]) == 4 * (2 * 10 * (5 * 16 + 64) + 8)


def storages() -> dict[int, int]:
    """Bytes of every tensor storage that is alive in this process, by its address."""
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


@pytest.mark.parametrize("make", [tiny_clip, tiny_t5], ids=["clip", "t5"])
def test_models_take_what_making_them_takes(make: Callable[[int], Model]) -> None:
    """Measured, by what is alive afterwards: text towers and decoders have no part in calibration, and are there."""
    before = storages()
    source, target = make(1), make(2)
    made = sum(size for address, size in storages().items() if address not in before)
    assert plan_memory(source, target, BICO, batch_size=4).models == made > 0


def test_without_a_budget_one_pass_serves_all(source: ClipViT, target: ClipViT) -> None:
    plan = plan_memory(source, target, BICO, batch_size=4)
    assert plan.passes == (target.sites,)
    block, behind = 4 * (8 * 256 + 2 * 4096), 4 * (16 * 16 + 8 * 8)
    assert plan.covariances == 2 * block + behind
    assert plan_memory(source, target, BICO, 4, snapshots=3).covariances == 2 * plan.covariances
    assert plan.peak == plan.models + plan.batch + plan.covariances


def test_a_budget_makes_passes_of_whole_blocks(source: ClipViT, target: ClipViT) -> None:
    whole = plan_memory(source, target, BICO, 4)
    plan = plan_memory(source, target, BICO, 4, budget=(whole.peak - 1) / GIGABYTE)
    assert [{site.group for site in part} for part in plan.passes] == [{"block-0", "block-1"}, {"head"}]
    assert [site for part in plan.passes for site in part] == list(target.sites)
    assert plan.peak < whole.peak
    least = plan_memory(source, target, BICO, 4, budget=(whole.peak - plan.covariances / 2) / GIGABYTE)
    assert [{site.group for site in part} for part in least.passes] == [{"block-0"}, {"block-1", "head"}]


def test_a_budget_that_no_plan_meets_is_an_error_that_says_how_much_is_needed(source: ClipViT, target: ClipViT) -> None:
    with pytest.raises(ConfigError, match=r"--memory 1e-05: models take 0\.00 GB.*give at least 0\.00"):
        plan_memory(source, target, BICO, 4, budget=1e-5)


def test_passes_together_give_what_one_pass_gives(
    source: ClipViT, target: ClipViT, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = covariances_of(source, target, labels, BICO, [4, 12])
    budget = plan_memory(source, target, BICO, 4, snapshots=2).peak - 1
    plan = plan_memory(source, target, BICO, 4, snapshots=2, budget=budget / GIGABYTE)
    counts = count_passes(monkeypatch)
    images, heads, found, peak = pictures(12), (head(source), head(target)), {4: {}, 12: {}}, 0
    for sites in plan.passes:
        batches = (Batch(images[s], images[s], labels[s]) for s in split_at(12, 4, [4, 12]))
        for samples, covariances in cross_covariances(source, target, batches, heads, BICO, [4, 12], sites):
            peak = max(peak, sum(4 * value.numel() for value in covariances.values()))
            found[samples] |= covariances
    assert counts == {"forward": 2 * 3 * len(plan.passes), "backward": 2 * 3 * len(plan.passes)}
    assert 2 * peak == plan.covariances  # float32 sizes; twice for the sums and the snapshot
    for samples, covariances in whole.items():
        assert found[samples].keys() == covariances.keys()
        for key, value in covariances.items():
            assert_close(found[samples][key], value)


class Living:
    """How many of the tensors that a model handed over are alive."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref] = []

    def add(self, tensor: Tensor) -> None:
        self.seen.append(weakref.ref(tensor))

    def __len__(self) -> int:
        return sum(ref() is not None for ref in self.seen)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_signals_live_no_longer_than_their_product(
    layers: int, source: ClipViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the target's k-th signal, what is left of the source's is what later ones need, and of the target's that one."""
    target = tiny_clip(2, layers=layers)
    ours, theirs = Living(), Living()
    left: list[tuple[int, int]] = []
    stream = bico.calibration.covariances.stream_signals

    def counted(model: ClipViT, *args: object) -> None:
        *rest, receive = args

        def hand_over(key: tuple, tensor: Tensor, receive: Callable = receive) -> None:
            (ours if model is source else theirs).add(tensor)
            receive(key, tensor)
            if model is target:
                left.append((len(ours), len(theirs)))

        stream(model, *rest, hand_over)

    monkeypatch.setattr(bico.calibration.covariances, "stream_signals", counted)
    gc.disable()  # references must go by themselves, not by chance
    try:
        covariances_of(source, target, torch.arange(4), BICO, [4])
    finally:
        gc.enable()
    assert [alive for _, alive in left] == [1] * len(left)
    kept = [alive for alive, _ in left]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0
    # each block of the target lets go of its ten signals unless a later one needs them
    assert len(set(kept)) == len(ours.seen) or layers > 2
    assert len(ours.seen) == {1: 12, 2: 22, 4: 22}[layers]


def test_the_last_snapshot_is_not_copied(source: ClipViT, target: ClipViT, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    clone = Tensor.clone
    labels = torch.arange(8) % 5
    heads, images = (head(source), head(target)), pictures(8)
    batches = [Batch(images[s], images[s], labels[s]) for s in split_at(8, 4, [4])]
    stream = cross_covariances(source, target, batches, heads, BICO, [4, 8])
    monkeypatch.setattr(Tensor, "clone", lambda self, **options: copies.append(self) or clone(self, **options))
    first, last = next(stream)[1], next(stream)[1]
    assert len(copies) == len(first) == len(last)
