"""Sums over blocks by methods that align by samples: each source block's update by maps of its own."""

import re
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bico.adapters.maps import aligned_maps
from bico.calibration.covariances import Batch, cross_covariances, pair_rows
from bico.calibration.memory import covariance_bytes, covariance_shapes
from bico.calibration.pairing import is_beside, met_at, pairs_beside
from bico.calibration.scales import Side
from bico.calibration.signals import Signal
from bico.errors import MethodError
from bico.methods import Pair, get_method
from bico.methods.settings import identity
from bico.methods.strength import effect_strengths, output_stood_for, sizes_of
from bico.models.clip.vit import ClipViT
from bico.models.depth import Depth, take_sites
from bico.models.wrapped import wrap
from bico.rehoming.in_memory import gather
from tests.library.test_methods import carried
from tests.tiny import evidence_for, random_task_vector, tiny_clip
from tests.tiny_module import CLASSES, rotation, summed

BOTH = [Signal.INPUT, Signal.OUTPUT_GRAD]


class SideBySide(nn.Module):
    """Blocks that read one stream and add to one output, each in coordinates of its own on both sides."""

    def __init__(self, turns: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.turns = turns
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, HIDDEN).double() for _ in turns)
        self.head = nn.Linear(HIDDEN, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        both = zip(self.blocks, self.turns, strict=True)
        return self.head(torch.tanh(sum(block(x @ reads) @ gives for block, (reads, gives) in both)))


WIDTH, HIDDEN = 12, 8
TURNS = [(rotation(WIDTH, 10 + n), rotation(HIDDEN, 20 + n)) for n in range(4)]
TURN = rotation(WIDTH, 1)
"""Between the inputs of source and target."""


def own(n: int, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What a block of the source holds that does the work of a weight and a bias of the stream. Blocks of a pair write to
    directions that are orthogonal, as matched effects assume.
    """
    (reads, gives), kept = TURNS[n], rotation(HIDDEN, 2)[:, 4 * (n % 2) : 4 * (n % 2) + 4]
    return gives @ kept @ kept.T @ weight @ reads, gives @ kept @ kept.T @ bias


def redundant() -> tuple[SideBySide, SideBySide]:
    """A source whose four blocks do the work of two in pairs, and the same function in two blocks and other coordinates."""
    torch.manual_seed(0)
    eye = torch.eye(WIDTH, dtype=torch.float64), torch.eye(HIDDEN, dtype=torch.float64)
    deep, shallow = SideBySide(TURNS), SideBySide([eye, eye])
    with torch.no_grad():
        for n, block in enumerate(deep.blocks):
            made = own(n, block.weight, block.bias)
            block.weight.copy_(made[0])
            block.bias.copy_(made[1])
        for n, block in enumerate(shallow.blocks):
            pair = [(deep.blocks[m], *TURNS[m]) for m in (2 * n, 2 * n + 1)]
            block.weight.copy_(sum(gives.T @ one.weight @ reads.T for one, reads, gives in pair) @ TURN)
            block.bias.copy_(sum(gives.T @ one.bias for one, _, gives in pair))
        shallow.head.load_state_dict(deep.head.state_dict())
    return deep, shallow


def outputs_after(method: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of the target with what was carried, as it is, and of the expert; up to what all classes have in common, which the loss
    does not feel.
    """

    def centred(scores: Tensor) -> Tensor:
        return scores - scores.mean(1, keepdim=True)

    deep, shallow = redundant()
    source, target = wrap(deep, summed), wrap(shallow, summed)
    torch.manual_seed(5)
    inputs, test = (torch.randn(count, WIDTH, dtype=torch.float64) for count in (300, 50))
    tau = {name: 0.3 * torch.randn_like(tensor) for name, tensor in source.state().items()}
    for n in range(4):
        names = [f"blocks.{n}.{part}" for part in ("weight", "bias")]
        tau |= dict(zip(names, own(n, *(tau[name] for name in names)), strict=True))
    with torch.no_grad():
        assert_close(shallow(test @ TURN), deep(test))  # planted: one function
    chosen = get_method(method)
    batches = [Batch(inputs, inputs @ TURN, torch.arange(300) % CLASSES)]
    evidence = gather(source, target, batches, (None, None), chosen)
    evidence.rtol = 1e-12
    vector = chosen.transport(tau, Pair.of(source, target), evidence)
    with torch.no_grad():
        before = centred(shallow(test @ TURN))
        with target.updated(vector):
            after = centred(shallow(test @ TURN))
        with source.updated(tau):
            return after, before, centred(deep(test))


@pytest.mark.parametrize("method", ["bico:rank=0:depth=sum", "bico:rank=0:depth=sum:whiten=0.25"])
def test_a_redundant_pair_of_blocks_arrives_whole(method: str) -> None:
    after, _, expert = outputs_after(method)
    assert_close(after, expert, atol=1e-4, rtol=1e-3)


def test_one_block_for_each_loses_the_other() -> None:
    """The control of the test above: half of the update is missing."""
    after, before, expert = outputs_after("bico:rank=0")
    assert (after - expert).norm() > 0.2 * (expert - before).norm()


def test_matched_effects_of_a_redundant_pair_are_those_of_both_together() -> None:
    after, before, expert = outputs_after("bico:rank=0:depth=sum:strength=effect")
    lost = (after - expert).norm() / (expert - before).norm()
    single, *_ = outputs_after("bico:rank=0:strength=effect")
    assert lost < 0.1 < (single - expert).norm() / (expert - before).norm()


@pytest.mark.parametrize("name", ["bico", "theseus", "gradient-only"])
@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 2)])
def test_what_arrives_is_the_sum_of_each_by_its_own_maps(name: str, shape: tuple[int, int]) -> None:
    source, target = tiny_clip(1, layers=shape[0]), tiny_clip(2, layers=shape[1], width=24)
    method, tau = get_method(f"{name}:depth=sum"), random_task_vector(source)
    evidence, pair = evidence_for(method, source, target), Pair.of(source, target)
    vector = method.transport(tau, pair, evidence)
    for site in target.sites:
        taken = take_sites(source.sites, target.sites, Depth.SUM)[site.name]
        parts = []
        for ours in taken.sites:
            q_in, q_out = method.maps(ours, site, pair, evidence)
            parts.append(taken.share * q_out.matrix.T @ ours.weight.read(tau).to(q_in.matrix) @ q_in.matrix)
        assert_close(site.weight.read(vector), sum(parts).to(site.weight.read(vector)), atol=1e-6, rtol=1e-5)


def test_maps_of_another_block_are_those_of_its_rows() -> None:
    """Against a pass that keeps the rows themselves."""
    source, target = tiny_clip(1, layers=4), tiny_clip(2, layers=2)
    method = get_method("bico:depth=sum")
    evidence = evidence_for(method, source, target)
    beside = {key: value for key, value in evidence.covariances.items() if is_beside(key[0])}
    expected = pairs_beside(source.sites, target.sites, target.sites, BOTH)
    assert beside.keys() == expected.keys() and len(beside) == 2 * (6 + 4)  # per block: outputs of 6 sites, inputs of 4
    plain = evidence_for(get_method("bico"), source, target).covariances
    assert all(torch.equal(plain[key], evidence.covariances[key]) for key in plain)  # the others are as they were
    # A model with two blocks whose every one is the skipped one sees the same rows as counterparts.
    for (tensor, signal), value in beside.items():
        assert value.shape == tuple(site_width(one, signal) for one in expected[tensor, signal])


def site_width(site, signal: Signal) -> int:
    return site.shape[1] if signal.of_input else site.shape[0]


def test_rows_that_meet_beside_counterparts_are_those_of_the_two_tensors() -> None:
    source, target = tiny_clip(1, layers=4), tiny_clip(2, layers=2)
    inputs, labels = torch.randn(6, 3, 12, 12, dtype=torch.float64), torch.arange(6) % 5
    heads = tuple(torch.randn(5, 8, dtype=torch.float64) for _ in range(2))
    batch, seen = Batch(inputs, inputs, labels), {}
    pair_rows(source, target, batch, heads, BOTH, lambda key, *rows: seen.__setitem__(key, rows), beside=BOTH)
    # Of a model against itself, counterparts are what each tensor holds.
    own: dict = {}
    pair_rows(source, source, batch, heads, BOTH, lambda key, *rows: own.__setitem__(key, rows[0]))
    for (tensor, signal), (ours, _) in seen.items():
        if is_beside(tensor) and not signal.is_gradient:  # of gradients, zero rows of either are left out
            assert torch.equal(ours, own[tensor.partition("<-")[2], signal])
    assert {met_at(tensor) for tensor, _ in seen} <= {tensor for tensor, _ in seen if not is_beside(tensor)}


def test_pairs_beside_can_be_collected_alone_and_in_parts() -> None:
    source, target = tiny_clip(1, layers=4), tiny_clip(2, layers=2)
    inputs, labels = torch.randn(6, 3, 12, 12, dtype=torch.float64), torch.arange(6) % 5
    heads = tuple(torch.randn(5, 8, dtype=torch.float64) for _ in range(2))

    def collect(signals: list[Signal], beside: list[Signal], sites=None) -> dict:
        batches = [Batch(inputs[part], inputs[part], labels[part]) for part in (slice(0, 4), slice(4, 6))]
        ((_, found),) = cross_covariances(source, target, batches, heads, signals, [6], sites, beside=beside)
        return found

    whole = collect(BOTH, BOTH)
    alone = collect([], BOTH)
    assert alone.keys() == {key for key in whole if is_beside(key[0])} and alone
    assert all(torch.equal(alone[key], whole[key]) for key in alone)
    blocks = [[site for site in target.sites if site.block == n] for n in (0, 1, None)]
    parts = [collect([], BOTH, sites) for sites in blocks]
    assert parts[2] == {} and {*chain(*parts)} == alone.keys()
    assert all(torch.equal(value, alone[key]) for part in parts for key, value in part.items())
    shapes = covariance_shapes(source.sites, target.sites, target.sites, BOTH, BOTH)
    assert {key: tuple(value.shape) for key, value in whole.items()} == shapes
    wanted = dict.fromkeys(BOTH)
    taken = covariance_bytes(source.sites, target.sites, target.sites, wanted, wanted)
    assert taken == 4 * sum(value.numel() for value in whole.values())


def test_a_pair_of_one_depth_needs_nothing_besides(source: ClipViT, target: ClipViT) -> None:
    tau = random_task_vector(source)
    one, whole = (carried(get_method(f"bico{more}"), source, target, tau) for more in ("", ":depth=sum"))
    assert all(torch.equal(one[name], whole[name]) for name in one)
    assert not pairs_beside(source.sites, target.sites, target.sites, BOTH)


def test_a_source_block_that_several_share_has_the_effect_that_it_had() -> None:
    """Deeper: each block gets its share of the update and is measured against its share of the output, which cancels."""
    source, target = tiny_clip(1, layers=2), tiny_clip(2, layers=4)
    method = get_method("bico:depth=sum:strength=effect")
    evidence, tau = evidence_for(method, source, target), random_task_vector(source)
    vector = method.transport(tau, Pair.of(source, target), evidence)
    fixed = get_method("bico:depth=sum")
    plain = fixed.transport(tau, Pair.of(source, target), evidence)
    for site in target.sites:
        taken = take_sites(source.sites, target.sites, Depth.SUM)[site.name]
        whole, _ = effect_strengths(
            sizes_of(taken.sites[0], Side.SOURCE, evidence), sizes_of(site, Side.TARGET, evidence)
        )
        assert_close(site.weight.read(vector), whole / taken.share * site.weight.read(plain))


def test_outputs_that_one_block_stands_for_add_up_as_squares() -> None:
    source, target = tiny_clip(1, layers=4), tiny_clip(2, layers=2)
    evidence = evidence_for(get_method("bico:depth=sum:strength=effect"), source, target)
    taken = take_sites(source.sites, target.sites, Depth.SUM)["blocks.1.v"]
    norms = [sizes_of(site, Side.SOURCE, evidence).gives.norm for site in taken.sites]
    assert output_stood_for(taken, evidence) == pytest.approx(sum(norm**2 for norm in norms) ** 0.5)


def test_an_adapter_is_carried_by_the_same_maps_and_strengths() -> None:
    source, target = tiny_clip(1, layers=4), tiny_clip(2, layers=2)
    method = get_method("bico:depth=sum:strength=effect")
    evidence, pair = evidence_for(method, source, target), Pair.of(source, target)
    tau = random_task_vector(source)
    maps, vector = aligned_maps(method, evidence, pair), method.transport(tau, pair, evidence)
    for site in target.sites:
        parts = []
        for ours in take_sites(source.sites, target.sites, Depth.SUM)[site.name].sites:
            sides = maps(ours, site)
            weight = ours.weight.read(tau).to(sides.reads.matrix)
            parts.append(sides.gain * sides.gives.matrix.T @ weight @ sides.reads.matrix)
        assert_close(site.weight.read(vector), sum(parts).to(site.weight.read(vector)), atol=1e-6, rtol=1e-5)


def test_all_blocks_have_to_fit_where_a_side_is_left_as_it_is() -> None:
    source, target = tiny_clip(1, layers=4, width=24), tiny_clip(2, layers=2)
    with pytest.raises(MethodError, match=re.escape("input-only leaves the output side as it is")):
        get_method("input-only:depth=sum").check(Pair.of(source, target))


def test_keys_of_what_was_stored_before_stay() -> None:
    assert not {"depth", "whiten"} & {*identity(get_method("bico"))}
    assert {"depth", "whiten"} <= {*identity(get_method("bico:depth=sum:whiten=0.5"))}
