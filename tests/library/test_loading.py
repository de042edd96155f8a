import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import load_file, save_file

from bico.errors import CheckpointError, UnknownModelError
from bico.models import checkpoints
from bico.models.clip.family import CONFIG, WEIGHTS
from bico.models.families import get_family
from bico.models.loading import load, resolve
from tests.releases import write_release
from tests.tiny import config


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release", seed=1)


def rewrite(release: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(release / WEIGHTS)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    save_file(state, release / WEIGHTS)


def test_a_folder_loads_as_open_clip_loads_it(release: Path) -> None:
    ours = load(resolve(str(release)))
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{release}")
    theirs.eval()
    assert all(torch.equal(p, q) for p, q in zip(ours.model.parameters(), theirs.parameters(), strict=True))
    assert repr(ours.preprocess) == repr(preprocess)
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(ours.features(images), theirs.encode_image(images))
    assert not any(p.requires_grad for p in ours.model.parameters())


def test_the_digest_follows_content_not_place(release: Path, tmp_path: Path) -> None:
    before = resolve(str(release)).digest()
    twin = write_release(tmp_path / "elsewhere", seed=1)
    assert resolve(str(twin)).digest() == before
    rewrite(twin, visual__proj=torch.zeros(16, 8))
    assert resolve(str(twin)).digest() != before


def test_digests_are_those_that_stored_results_are_kept_under() -> None:
    assert resolve("zoo:mini-a").digest() == "3442fe8bb946b4881a1deeb61842516c8789747ba51ef79e6b8b92fc473fa033"
    assert resolve("zoo:t5-mini-a").digest() == "38109a1de5dd0e0ba51e293b32fd8a4070a245e48b254a9932c34ec5e618f1e7"


ARCHITECTURE = "tiny-vit"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a tiny architecture known to open_clip, with a tag `trained` for weights on disk; gives their file."""
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))

    def publish(vision: dict[str, Any] | None = None, **about: Any) -> Path:
        cfg = config()
        cfg["vision_cfg"] |= vision or {}
        cfg["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
        (tmp_path / f"{ARCHITECTURE}.json").write_text(json.dumps(cfg))
        open_clip.add_model_config(tmp_path / f"{ARCHITECTURE}.json")
        torch.manual_seed(1)
        weights = tmp_path / "trained.safetensors"
        save_file({k: v.contiguous() for k, v in open_clip.model.CLIP(**cfg).state_dict().items()}, weights)
        monkeypatch.setitem(pretrained._PRETRAINED, ARCHITECTURE, {"trained": {"file": str(weights), **about}})
        return weights

    return publish


def as_open_clip_has_it(pretrained: Path | str, **how: bool) -> tuple[Any, Any]:
    model, _, preprocess = open_clip.create_model_and_transforms(ARCHITECTURE, pretrained=str(pretrained), **how)
    return model.eval(), preprocess


@pytest.mark.parametrize("place", ["trained", "{weights}"], ids=["tag", "file"])
def test_a_built_in_architecture_loads_as_open_clip_loads_it(published: Callable[..., Path], place: str) -> None:
    weights = published()
    place = place.format(weights=weights)
    files = resolve(f"open_clip:{ARCHITECTURE}/{place}")
    assert files.weights == weights and files.files == (weights,)
    ours, (theirs, preprocess) = load(files), as_open_clip_has_it(place)
    state = load_file(weights)
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.model.state_dict().items())
    assert repr(ours.preprocess) == repr(preprocess)
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(ours.features(images), theirs.encode_image(images))
    words = open_clip.get_tokenizer(ARCHITECTURE)(["a photo of a dog"])
    torch.testing.assert_close(ours.head(["dog"], ["a photo of a {}"]), theirs.encode_text(words, normalize=True))


ODD = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "interpolation": "bilinear", "resize_mode": "squash"}


def test_a_tag_brings_the_preprocessing_and_the_activation_that_it_was_trained_with(
    published: Callable[..., Path], tmp_path: Path
) -> None:
    published(**ODD, quick_gelu=True, size=99)
    ours = load(files := resolve(f"open_clip:{ARCHITECTURE}/trained"))
    theirs, preprocess = as_open_clip_has_it("trained", force_quick_gelu=True)
    picture = Image.fromarray((torch.rand(20, 30, 3) * 255).byte().numpy())
    torch.testing.assert_close(ours.prepare([picture])[0], preprocess(picture))
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(ours.features(images), theirs.encode_image(images))
    # ... and so does what is saved of it
    (tmp_path / "saved").mkdir()
    get_family(files.family).save(ours, files, tmp_path / "saved")
    saved, _, again = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
    torch.testing.assert_close(again(picture), preprocess(picture))
    torch.testing.assert_close(saved.eval().encode_image(images), ours.features(images))
    back = load(resolve(str(tmp_path / "saved")))
    torch.testing.assert_close(back.prepare([picture]), ours.prepare([picture]))


def test_the_digest_of_a_tag_covers_what_is_resolved_from_it_where_that_is_not_open_clips_usual(
    published: Callable[..., Path],
) -> None:
    ref = f"open_clip:{ARCHITECTURE}/trained"
    weights = published(**asdict(PreprocessCfg()))
    usual = resolve(ref)
    assert usual.built_in == ARCHITECTURE  # the keys of most tags are what they were
    assert resolve(f"open_clip:{ARCHITECTURE}/{weights}").digest() == usual.digest()
    digests = {usual.digest()}
    for changes in ({"mean": (0.5, 0.5, 0.5)}, {"interpolation": "bilinear"}, {"quick_gelu": True}):
        published(**asdict(PreprocessCfg()) | changes)
        digests.add(resolve(ref).digest())
    published({"mlp_ratio": 2}, quick_gelu=True)
    digests.add(resolve(ref).digest())
    assert len(digests) == 5


def test_weights_are_read_once(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = checkpoints.read_safetensors, []
    monkeypatch.setattr(checkpoints, "read_safetensors", lambda path: seen.append(path) or read(path))
    load(resolve(str(release)))
    assert len(seen) == 1


def test_a_built_in_architecture_of_another_kind_is_refused(published: Callable[..., Path]) -> None:
    published({"attentional_pool": True})
    with pytest.raises(CheckpointError, match="not a standard ViT"):
        load(resolve(f"open_clip:{ARCHITECTURE}/trained"))


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("zoo:mini-z", "no model 'mini-z'"),
        ("mini-a", "Unknown model 'mini-a'.*did you mean 'zoo:mini-a'"),
        ("open_clip:ViT-B-61/openai", "no architecture 'ViT-B-61'.*did you mean 'ViT-B-16'"),
        (
            "open_clip:ViT-B-16/laion2b_s34b_b88",
            "neither a file nor a tag of ViT-B-16.*did you mean 'laion2b_s34b_b88k'",
        ),
    ],
)
def test_unknown_references_name_the_nearest(ref: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        resolve(ref)


def test_a_folder_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no model in .*{CONFIG}.*, or config.json of a T5"):
        resolve(str(tmp_path / "nowhere"))
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match="is not an open_clip configuration"):
        resolve(str(tmp_path))
    (tmp_path / CONFIG).write_text('{"model_cfg": {}}')
    with pytest.raises(CheckpointError, match="holds no weights"):
        resolve(str(tmp_path))


def test_damaged_weights_are_refused(release: Path) -> None:
    (release / WEIGHTS).write_bytes((release / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is damaged or no safetensors file"):
        load(resolve(str(release)))


def test_weights_of_another_architecture_are_refused(release: Path) -> None:
    rewrite(release, visual__conv1__weight=torch.zeros(24, 3, 4, 4))
    with pytest.raises(CheckpointError, match=r"visual\.conv1\.weight is \(24, 3, 4, 4\).*of another architecture"):
        load(resolve(str(release)))


def test_missing_weights_are_refused(release: Path) -> None:
    rewrite(release, visual__ln_post__weight=None)
    with pytest.raises(CheckpointError, match="do not fit the architecture.*ln_post.weight"):
        load(resolve(str(release)))


def test_another_image_size_is_refused_and_not_interpolated(release: Path) -> None:
    config = json.loads((release / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 16
    (release / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"positional_embedding is \(10, 16\).*\(17, 16\).*of another image size"):
        load(resolve(str(release)))


def test_weights_that_are_not_finite_are_refused(release: Path) -> None:
    rewrite(release, visual__proj=torch.full((16, 8), torch.nan))
    with pytest.raises(CheckpointError, match=r"visual\.proj holds NaN"):
        load(resolve(str(release)))
