"""The index of a pack: read as it was written, wary of what it is given, and plain about what it exposes."""

import json

import pytest

from bico.calibration.pack import Pack, PackedDraw, PackedMaps, PackedModel, exposed
from bico.errors import ConfigError


def make(sizes: dict[int, int], most: dict[int, int]) -> Pack:
    maps = (PackedMaps("procrustes-1", "collect-1", "block-0", "input", ("x",), "partial", 128),)
    draw = PackedDraw("birds", "d" * 64, 0, "random", sizes, maps, {"source": "scales-1"}, most)
    models = (PackedModel("old", "a" * 64), PackedModel("new", "b" * 64))
    return Pack(
        *models, ("bico",), "partial", 128, (draw,), {"procrustes-1": {"maps/zarr.json": "c" * 64}}, {"bico": "1"}
    )


def test_an_index_is_read_as_it_was_written() -> None:
    pack = make({50: 50, 200: 200}, {50: 40, 200: 128})
    assert Pack.parse(pack.to_json(), "x") == pack and pack.tasks == ["birds"]


@pytest.mark.parametrize(
    ("sizes", "most", "small"),
    [({200: 200}, {200: 128}, False), ({8: 8, 200: 200}, {8: 16, 200: 128}, True), ({128: 128}, {128: 128}, True)],
)
def test_few_samples_are_called_by_their_name(sizes: dict[int, int], most: dict[int, int], small: bool) -> None:
    pack = make(sizes, most)
    said = " ".join(exposed(pack))
    assert pack.is_small is small and ("LOW" in said) is small and ("nested" in said) is (len(sizes) > 1)


@pytest.mark.parametrize("name", ["../../home", "/etc/passwd", "maps/../x", "a\\b", "C:x", "maps//x", ""])
def test_an_index_leads_nowhere_else(name: str) -> None:
    for place in ("key", "file"):
        found = json.loads(make({9: 9}, {9: 1}).to_json())
        found["files"] = {name: {"x": "c"}} if place == "key" else {"k": {name: "c"}}
        with pytest.raises(ConfigError, match="outside of the pack"):
            Pack.parse(json.dumps(found), "x")


def test_what_is_no_index_is_refused() -> None:
    good = json.loads(make({9: 9}, {9: 1}).to_json())
    for found, why in (
        ({}, "not the index"),
        (good | {"bico_pack": 99}, "a later bico"),
        (good | {"draws": []}, "is empty"),
        (good | {"draws": [{"task": "x"}]}, "not the index"),
    ):
        with pytest.raises(ConfigError, match=why):
            Pack.parse(json.dumps(found), "x")
