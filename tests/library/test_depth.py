"""Blocks of two depths: what each of the target's takes, whether by depth or by likeness."""

import re
from itertools import combinations, product

import pytest
import torch
from torch.testing import assert_close

from bico.errors import ShapeError
from bico.methods import Gathered, Pair, get_method
from bico.methods.settings import identity
from bico.models.clip.vit import ClipViT
from bico.models.depth import Depth, Taken, take_alike, take_blocks, take_sites
from bico.models.matching import match_blocks, match_sites
from tests.tiny import random_task_vector, tiny_clip

DEPTHS = [*product(range(1, 13), range(1, 13)), (24, 12), (12, 6), (12, 3), (6, 12)]


@pytest.mark.parametrize(("source", "target"), DEPTHS)
def test_in_order_each_block_goes_somewhere_whole_and_evenly(source: int, target: int) -> None:
    taken, one = take_blocks(source, target, Depth.SUM), take_blocks(source, target)
    assert one == [Taken((block,)) for block in match_blocks(source, target)]
    assert len(taken) == target and all(part.blocks for part in taken)
    order = [block for part in taken for block in part.blocks]
    assert order == sorted(order) and set(order) == set(range(source))
    for block in range(source):  # nothing of an update is lost, and nothing comes twice
        assert sum(part.share for part in taken if block in part.blocks) == pytest.approx(1.0)
    sizes = [len(part.blocks) for part in taken] if source > target else [round(1 / part.share) for part in taken]
    assert max(sizes) - min(sizes) <= 1
    if source > target > 1:
        assert all(first.blocks[0] in part.blocks for first, part in zip(one, taken, strict=True))
    if source == target:
        assert taken == one


def test_a_few_by_hand() -> None:
    assert [part.blocks for part in take_blocks(12, 3, Depth.SUM)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert [part.blocks for part in take_blocks(5, 1, Depth.SUM)] == [(0, 1, 2, 3, 4)]
    assert [(part.blocks, part.share) for part in take_blocks(3, 5, Depth.SUM)] == [
        ((0,), 0.5), ((0,), 0.5), ((1,), 1.0), ((2,), 0.5), ((2,), 0.5),
    ]  # fmt: skip
    with pytest.raises(ShapeError, match="at least one on each side, got 0 and 3"):
        take_blocks(0, 3, Depth.SUM)


@pytest.mark.parametrize(("source", "target"), [(6, 3), (7, 2), (5, 5), (3, 6), (1, 4), (4, 1)])
def test_by_likeness_no_other_assignment_in_order_is_better(source: int, target: int) -> None:
    generator = torch.Generator().manual_seed(source)
    for _ in range(20):
        likeness = torch.rand(source, target, dtype=torch.float64, generator=generator)
        table, few = (likeness, target) if source >= target else (likeness.T, source)
        best = max(
            sum(float(table[n, sum(cut <= n for cut in cuts)]) for n in range(len(table)))
            for cuts in combinations(range(1, len(table)), few - 1)
        )
        taken = take_alike(likeness)
        found = sum(float(likeness[block, n]) for n, part in enumerate(taken) for block in part.blocks)
        assert found == pytest.approx(best)
        assert {block for part in taken for block in part.blocks} == set(range(source)) and len(taken) == target


def test_a_planted_assignment_is_found() -> None:
    planted = [0, 0, 0, 1, 2, 2]
    likeness = torch.full((6, 3), 0.2)
    likeness[range(6), planted] = 0.9
    assert [part.blocks for part in take_alike(likeness)] == [(0, 1, 2), (3,), (4, 5)]
    assert [(part.blocks, round(part.share, 3)) for part in take_alike(likeness.T)] == [
        ((0,), 0.333), ((0,), 0.333), ((0,), 0.333), ((1,), 1.0), ((2,), 0.5), ((2,), 0.5),
    ]  # fmt: skip


def test_likenesses_that_are_none_are_refused() -> None:
    for wrong in (torch.zeros(0, 3), torch.tensor([[1.0, torch.nan]])):
        with pytest.raises(ShapeError, match="must be finite numbers"):
            take_alike(wrong)


def test_sites_are_taken_by_role() -> None:
    source, target = tiny_clip(1, layers=4).sites, tiny_clip(2, layers=2, width=24).sites
    taken = take_sites(source, target, Depth.SUM)
    assert [site.name for site in taken["blocks.1.v"].sites] == ["blocks.2.v", "blocks.3.v"]
    assert [site.name for site in taken["proj"].sites] == ["proj"] and list(taken) == [site.name for site in target]
    back = take_sites(target, source, Depth.SUM)
    assert [(site.name, back["blocks.1.c_fc"].share) for site in back["blocks.1.c_fc"].sites] == [
        ("blocks.0.c_fc", 0.5)
    ]
    assert {name: part.sites[0] for name, part in take_sites(source, target).items()} == match_sites(source, target)


def stretched(deep: ClipViT, shallow: ClipViT) -> None:
    """Gives every two blocks of one model the weights of one of the other's."""
    state, theirs = deep.state(), shallow.state()
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(theirs[halved(name)])


def halved(name: str) -> str:
    return re.sub(r"resblocks\.(\d+)", lambda found: f"resblocks.{int(found[1]) // 2}", name)


def test_a_shallower_target_takes_the_sum_and_a_deeper_one_shares() -> None:
    """Planted: two blocks of the deep model are one of the shallow, so that maps are the identity on what is carried."""
    deep, shallow = tiny_clip(1, layers=4), tiny_clip(2, layers=2)
    stretched(deep, shallow)
    tau = random_task_vector(deep)
    whole = get_method("theseus-data-free:depth=sum").transport(tau, Pair.of(deep, shallow), Gathered())
    one = get_method("theseus-data-free").transport(tau, Pair.of(deep, shallow), Gathered())
    wide = "visual.transformer.resblocks.1.mlp.c_fc.weight"  # no wider than deep: its inputs have all directions
    sums = {name: sum(t for key, t in tau.items() if halved(key) == name) for name in shallow.state()}
    state = shallow.state()[wide].double()
    outputs = torch.linalg.svd(state, full_matrices=False).U
    assert_close(whole[wide], (outputs @ outputs.T @ sums[wide].double()).to(whole[wide]))
    assert not torch.allclose(one[wide], whole[wide])
    again = get_method("theseus-data-free:depth=sum").transport(sums, Pair.of(shallow, deep), Gathered())
    for block in (2, 3):
        assert_close(again[wide.replace("blocks.1", f"blocks.{block}")], whole[wide] / 2)


def test_keys_of_what_was_stored_before_stay() -> None:
    assert "depth" not in identity(get_method("cross-lora")) and "depth" in identity(get_method("cross-lora:depth=sum"))
