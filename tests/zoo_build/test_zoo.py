"""The embedded zoo as shipped: whole, loadable by open_clip alone, and as good as its manifest says."""

import dataclasses
import shutil

import open_clip
import pytest
import torch

from bico.errors import CheckpointError, UnknownModelError
from bico.models import zoo
from bico.models.loading import load, resolve
from zoo_build.builders import family
from zoo_build.clip import ClipPretraining
from zoo_build.measure_clip import zero_shot

EVERYTHING = zoo.read_manifest()["models"]
MANIFEST = {name: entry for name, entry in EVERYTHING.items() if family(name) == "clip"}
every_model = pytest.mark.parametrize("name", sorted(MANIFEST))


def test_the_zoo_is_complete_and_small():
    assert zoo.list_models() == sorted(EVERYTHING) == sorted(zoo.recipes())
    weights = sum(zoo.weights(zoo.root() / name).stat().st_size for name in MANIFEST)
    assert weights < 40e6


@every_model
def test_entry_matches_files(name):
    entry = MANIFEST[name]
    assert zoo.digest(zoo.resolve(name)) == entry["sha256"]
    assert entry["recipe"] == dataclasses.asdict(ClipPretraining.load(zoo.recipe(name)))
    assert entry["bytes"] == sum(path.stat().st_size for path in zoo.resolve(name).iterdir())


@every_model
def test_open_clip_loads_it(name):
    reference = f"local-dir:{zoo.resolve(name)}"
    model, *_ = open_clip.create_model_and_transforms(reference)
    assert sum(p.numel() for p in model.parameters()) == MANIFEST[name]["parameters"]
    tokenize = open_clip.get_tokenizer(reference)
    side = MANIFEST[name]["recipe"]["image_size"]
    assert model.eval().encode_image(torch.zeros(1, 3, side, side)).shape == (1, MANIFEST[name]["recipe"]["embed_dim"])
    tokens = tokenize(["a photo of a red circle", "a photo of a red square"])
    red_circle, red_square = model.encode_text(tokens)
    assert torch.cosine_similarity(red_circle, red_square, dim=0) < 0.95
    padded_otherwise = torch.where(tokens == 0, 7, tokens)
    torch.testing.assert_close(model.encode_text(padded_otherwise), model.encode_text(tokens))


@every_model
def test_it_is_as_good_as_the_manifest_says(name):
    entry = MANIFEST[name]
    assert zero_shot(load(resolve(f"zoo:{name}")), "digits") == pytest.approx(entry["zero_shot"]["digits"], abs=1.0)
    assert entry["held_out"]["mean"] >= 85  # chance is 6
    assert entry["zero_shot"]["mnist"] >= 35


def test_damaged_weights_are_refused(tmp_path):
    shutil.copytree(zoo.root() / "mini-a", tmp_path / "mini-a")
    shutil.copy(zoo.root() / "manifest.json", tmp_path)
    assert zoo.resolve("mini-a", tmp_path) == tmp_path / "mini-a"
    weights = zoo.weights(tmp_path / "mini-a")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or was replaced.*bico zoo build mini-a"):
        zoo.resolve("mini-a", tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        zoo.resolve("mini-a", tmp_path)


def test_unknown_names_give_the_nearest():
    with pytest.raises(UnknownModelError, match="did you mean 'mini-b-plus'"):
        zoo.resolve("mini-b-pluss")
    with pytest.raises(UnknownModelError, match="did you mean 'mini-l'"):
        zoo.recipe("mini-k-l")


def test_register_keeps_the_other_entries(tmp_path):
    zoo.register("b", {"sha256": "1"}, tmp_path)
    zoo.register("a", {"sha256": "2"}, tmp_path)
    zoo.register("b", {"sha256": "3"}, tmp_path)
    assert zoo.read_manifest(tmp_path) == {"models": {"a": {"sha256": "2"}, "b": {"sha256": "3"}}}
    assert not list(tmp_path.glob("*.partial"))
