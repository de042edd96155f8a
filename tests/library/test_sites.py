import pytest
import torch

from bico.errors import MethodError, ShapeError
from bico.models.matching import match_blocks, match_sites
from bico.models.sites import Site, Slot, assemble
from tests.tiny import tiny_clip


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (2, 4, [0, 0, 1, 1]),  # 1/3 and 2/3
        (12, 24, [round(j * 11 / 23) for j in range(24)]),  # no halves here
        (24, 12, [round(j * 23 / 11) for j in range(12)]),
        (2, 3, [0, 1, 1]),  # a half is rounded up
        (4, 3, [0, 2, 3]),
        (5, 1, [4]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_blocks_are_matched_by_relative_depth(source: int, target: int, expected: list[int]) -> None:
    assert match_blocks(source, target) == expected


def test_no_blocks_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one"):
        match_blocks(0, 3)


def test_sites_cover_every_linear_map_once() -> None:
    model = tiny_clip(1, layers=3)
    assert [s.role for s in model.sites if s.block == 1] == ["q", "k", "v", "out_proj", "c_fc", "c_proj"]
    assert model.sites[-1].name == "proj" and model.sites[-1].group == "head"
    state = model.state()
    covered = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for site in model.sites:
        assert site.weight.read(state).shape == site.shape
        for slot in (site.weight, site.bias):
            if slot is not None:
                slot.write(covered, slot.read(covered) + 1)
    left_alone = {name for name, count in covered.items() if not count.any()}
    assert all((count == 1).all() for name, count in covered.items() if name not in left_alone)
    assert all(any(word in n for word in ("ln_", "conv1", "embedding")) for n in left_alone)


def test_matching_goes_by_role_and_depth() -> None:
    matched = match_sites(tiny_clip(1, layers=2).sites, tiny_clip(2, layers=3, width=24).sites)
    assert matched["blocks.0.q"].name == "blocks.0.q"
    assert matched["blocks.1.c_fc"].name == "blocks.1.c_fc"
    assert matched["blocks.2.v"].name == "blocks.1.v"
    assert matched["proj"].name == "proj"


def test_every_stack_is_matched_by_its_own_depth() -> None:
    def stacks(left: int, right: int) -> list[Site]:
        places = [("left", n) for n in range(left)] + [("right", n) for n in range(right)]
        return [Site(f"{s}{n}", n, "fc", Slot(f"{s}{n}"), None, "x", (2, 2), stack=s) for s, n in places]

    matched = match_sites(stacks(2, 3), stacks(3, 2))
    assert {name: site.name for name, site in matched.items()} == {
        "left0": "left0", "left1": "left1", "left2": "left1", "right0": "right0", "right1": "right2",
    }  # fmt: skip


def test_another_family_is_refused() -> None:
    alien = Site("blocks.0.wi", 0, "wi", Slot("wi"), None, "x", (2, 2))
    with pytest.raises(MethodError, match="role wi"):
        match_sites(tiny_clip(1).sites, [alien])


def _two_halves() -> list[Site]:
    return [Site(f"s{i}", 0, f"r{i}", Slot("w", 2 * i, 2 * i + 2), None, "x", (2, 3)) for i in range(2)]


def test_assembled_slices_stand_where_they_came_from() -> None:
    like = {"w": torch.arange(12.0).reshape(4, 3)}
    weights = {site.name: site.weight.read(like) for site in _two_halves()}
    assert torch.equal(assemble(weights, {}, _two_halves(), like)["w"], like["w"])


def test_a_transposed_slot_is_read_and_written_the_same_way() -> None:
    site = Site("proj", None, "proj", Slot("proj", transposed=True), None, "x", (2, 3))
    like = {"proj": torch.arange(6.0).reshape(3, 2)}
    assert site.weight.read(like).shape == (2, 3)
    assert torch.equal(assemble({"proj": site.weight.read(like)}, {}, [site], like)["proj"], like["proj"])


def test_a_forgotten_slice_is_no_silent_zero() -> None:
    like = {"w": torch.zeros(4, 3)}
    with pytest.raises(ShapeError, match="Part of w was left without an update"):
        assemble({"s0": torch.ones(2, 3)}, {}, _two_halves()[:1], like)


def test_an_update_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"site s0 has shape \(1, 3\).*takes \(2, 3\)"):
        assemble({"s0": torch.ones(1, 3), "s1": torch.ones(2, 3)}, {}, _two_halves(), {"w": torch.zeros(4, 3)})
