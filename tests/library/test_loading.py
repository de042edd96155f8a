import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from bico.errors import CheckpointError, UnknownModelError
from bico.models.clip.family import CONFIG, WEIGHTS
from bico.models.loading import load, resolve
from tests.releases import write_release


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


def test_a_checkpoint_file_of_a_built_in_architecture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("RN50", load_weights=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "weights.safetensors")
    files = resolve(f"open_clip:RN50/{tmp_path}/weights.safetensors")
    assert files.name == "RN50" and files.weights == tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match="not a standard ViT"):
        load(files)


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
    with pytest.raises(CheckpointError, match=f"no {CONFIG}"):
        resolve(str(tmp_path / "nowhere"))
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match="is not an open_clip configuration"):
        resolve(str(tmp_path))
    (tmp_path / CONFIG).write_text('{"model_cfg": {}}')
    with pytest.raises(CheckpointError, match="no .safetensors weights"):
        resolve(str(tmp_path))


def test_damaged_weights_are_refused(release: Path) -> None:
    (release / WEIGHTS).write_bytes((release / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"cannot read .*{WEIGHTS}"):
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
