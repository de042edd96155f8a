"""CLIP models in transformers' format: the same features and preprocessing as transformers' own, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
)

from bico.errors import CheckpointError
from bico.models.clip.vit import ClipViT
from bico.models.families import get_family
from bico.models.loading import load, resolve

WORDS = ["<start>", "<pad>", "a", "photo", "of", "cat", "dog", "red", "<end>"]
TINY = {"num_hidden_layers": 2, "num_attention_heads": 2}


def write_clip(folder: Path, act: str = "quick_gelu", eos: int = 8, **processor: Any) -> Path:
    """A tiny model with random weights (biases and norms among them), its tokenizer and its image processor."""
    torch.manual_seed(3)
    text = TINY | {"hidden_size": 24, "intermediate_size": 40, "vocab_size": 9, "max_position_embeddings": 8}
    text |= {"hidden_act": act, "bos_token_id": 0, "eos_token_id": eos, "pad_token_id": 1, "layer_norm_eps": 1e-3}
    vision = TINY | {"hidden_size": 16, "intermediate_size": 33, "image_size": 12, "patch_size": 4, "hidden_act": act}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="red"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<start>", 0), ("<end>", 8)]
    made.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    words = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>", bos_token="<start>")
    words.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 12}, "crop_size": {"height": 12, "width": 12}}
    CLIPImageProcessorPil(
        **sizes | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]} | processor
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip")


def theirs(folder: Path, **inputs: Any) -> torch.Tensor:
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model.get_text_features(**inputs) if "input_ids" in inputs else model.get_image_features(**inputs)
    return found if isinstance(found, torch.Tensor) else found.pooler_output


@pytest.mark.parametrize(("act", "eos"), [("quick_gelu", 8), ("gelu", 2), ("quick_gelu", 6)])
def test_features_of_pictures_and_words_are_those_of_transformers(tmp_path: Path, act: str, eos: int) -> None:
    folder = write_clip(tmp_path / "clip", act, eos)
    ours = load(resolve(str(folder)))
    assert isinstance(ours, ClipViT)
    images = torch.randn(3, 3, 12, 12)
    assert_close(ours.features(images), theirs(folder, pixel_values=images), atol=1e-5, rtol=1e-5)
    names = ["cat", "red dog"]
    ids = ours.tokenizer([f"a photo of {name}" for name in names])
    assert ids.tolist() == [[0, 2, 3, 4, 5, 8, 1, 1], [0, 2, 3, 4, 7, 6, 8, 1]]
    expected = F.normalize(theirs(folder, input_ids=ids, attention_mask=(ids != 1).long()), dim=1)
    assert_close(ours.head(names, ["a photo of {}"]), expected, atol=1e-5, rtol=1e-5)
    assert_close(ours.model.logit_scale, CLIPModel.from_pretrained(folder).logit_scale)


@pytest.mark.parametrize(
    "processor",
    [{}, {"resample": 2}, {"size": {"height": 12, "width": 12}, "do_center_crop": False, "resample": 2}],
    ids=["bicubic", "bilinear", "squashed"],
)
def test_pictures_are_prepared_as_transformers_does(tmp_path: Path, processor: dict[str, Any]) -> None:
    folder = write_clip(tmp_path / "clip", **processor)
    picture = Image.fromarray((torch.rand(17, 29, 3) * 255).byte().numpy())
    expected = CLIPImageProcessorPil.from_pretrained(folder)(picture, return_tensors="pt").pixel_values
    assert_close(load(resolve(str(folder))).prepare([picture]), expected, atol=0.02, rtol=0)  # a step of 8 bits is 0.02


def test_what_is_saved_of_it_is_open_clips_and_does_the_same(folder: Path, tmp_path: Path) -> None:
    ours = load(files := resolve(str(folder)))
    (saved := tmp_path / "saved").mkdir()
    get_family(files.family).save(ours, files, saved)
    again, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{saved}")
    images, picture = torch.randn(2, 3, 12, 12), Image.new("RGB", (20, 15), (10, 200, 30))
    assert_close(again.eval().encode_image(images), ours.features(images))
    assert_close(preprocess(picture), ours.prepare([picture])[0])
    back = load(resolve(str(saved)))
    assert_close(back.head(["cat", "dog"], ["a {}"]), ours.head(["cat", "dog"], ["a {}"]))
    assert resolve(f"local-dir:{saved}").digest() == resolve(str(saved)).digest()


def test_the_digest_covers_weights_configuration_preprocessing_and_tokenizer(folder: Path) -> None:
    names = ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
    seen = {resolve(str(folder)).digest()}
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        seen.add(resolve(str(folder)).digest())
    assert len(seen) == 1 + len(names)


def test_a_training_scripts_prefix_is_taken_off_a_model_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = torch.randn(1, 3, 12, 12)
    expected = load(resolve(str(folder))).features(images)
    assert caplog.text == ""
    state = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, folder / "model.safetensors")
    assert_close(load(resolve(str(folder))).features(images), expected)
    assert "read as a CLIP model of transformers, the prefix 'module.' was taken off" in caplog.text


def change(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def without(folder: Path, name: str) -> None:
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors")


def as_tower(folder: Path) -> None:
    config = CLIPConfig.from_pretrained(folder).vision_config
    CLIPVisionModelWithProjection(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "preprocessor_config.json").unlink(), "no preprocessor_config.json .*CLIPProcessor"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer in .*tokenizer.json or vocab.json"),
        (lambda f: change(f, "preprocessor_config.json", do_normalize=False), "no preprocessing that can be done here"),
        (lambda f: change(f, "preprocessor_config.json", size={"shortest_edge": 16}), "takes pictures of 12"),
        (lambda f: change(f, "preprocessor_config.json", resample=4), "no preprocessing that can be done here"),
        (lambda f: change(f, "config.json", text_config={"hidden_act": "gelu"}), "activation gelu and quick_gelu"),
        (lambda f: without(f, "visual_projection.weight"), r"do not fit the architecture.*visual\.proj"),
        (lambda f: without(f, "text_projection.weight"), "do not fit the architecture.*text_projection"),
        (lambda f: without(f, "vision_model.post_layernorm.bias"), r"do not fit .*visual"),
        (as_tower, "image tower of transformers without its text tower.*--expert of it"),
    ],
)
def test_what_is_missing_or_cannot_be_done_is_refused(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(resolve(str(folder)))
    assert "\n" not in str(caught.value)


def test_open_clips_spellings_of_a_folder_and_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(f"local-dir:{folder}").folder == folder
    asked: list[str] = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(repository)
        assert {"config.json", "preprocessor_config.json", "vocab.json", "*.txt"} <= set(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("hf-hub:OWNER/name").folder == resolve("hf:OWNER/name").folder == folder
    assert asked == ["OWNER/name"] * 2
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="no model in"):
        resolve(f"local-dir:{folder}")
