"""Folders in which transformers keeps a CLIP model: configuration and preprocessing, as open_clip puts them."""

import json
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError, one_line

CONFIG = "config.json"
KIND, TOWER_KINDS = "clip", ("clip_vision_model",)
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "vocab.json")
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Those that open_clip does, by PIL's numbers."""
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
"""What transformers takes where a configuration does not say; so it does for the two below."""
_ACTIVATION, _EPSILON = "quick_gelu", 1e-5


def kind_of(folder: Path) -> str | None:
    """The type of model that a folder's configuration names; None if there is none, or it cannot be read."""
    try:
        found = json.loads((folder / CONFIG).read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def model_config(folder: Path, ref: str) -> dict[str, Any]:
    """Returns open_clip's configuration of a model.

    Raises:
        CheckpointError: If the configuration asks for what open_clip's CLIP cannot do.
    """
    config = json.loads((folder / CONFIG).read_text())
    vision = _VISION | config.get("vision_config", {})
    text = _TEXT | config.get("text_config", {})
    activations = {part.get("hidden_act", _ACTIVATION) for part in (vision, text)}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise CheckpointError(
            f"{ref}: {CONFIG} asks for the activation {' and '.join(sorted(activations))}: CLIP models are served with "
            "gelu or quick_gelu in both towers."
        )
    end, last = text["eos_token_id"], text["vocab_size"] - 1
    # 2 stands in configurations of old; transformers then looks for the highest id, as open_clip does.
    pooled = {"pool_type": "argmax"} if end in (2, last) else {"pool_type": "eos", "eos_id": end}
    return {
        "embed_dim": config.get("projection_dim", 512),
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": _tower(vision)
        | {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        },
        "text_cfg": _tower(text)
        | {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            "hf_tokenizer_name": "local",
        }
        | pooled,
    }


def preprocessing(folder: Path, size: int, ref: str) -> dict[str, Any]:
    """Returns open_clip's preprocessing that does what transformers' image processor does.

    Arguments:
        size: Of the model's pictures.

    Raises:
        CheckpointError: If there is none, or it does what open_clip's preprocessing cannot.
    """
    path = next((folder / name for name in PROCESSORS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{ref}: no {PROCESSORS[0]} in {folder}: how pictures are prepared is not known; save the model's processor there "
            "too (`CLIPProcessor.save_pretrained`)."
        )
    try:
        said = json.loads(path.read_text())
        said = said.get("image_processor", said)
        resized, interpolation = _resized(said, size), _INTERPOLATIONS[said.get("resample", 3)]
        steps = ("do_resize", "do_rescale", "do_normalize")
        if not all(said.get(step, True) for step in steps) or abs(said.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
            raise ValueError("pictures must be resized, brought to 0..1 and normalised")
        return {
            "mean": list(said["image_mean"]),
            "std": list(said["image_std"]),
            "interpolation": interpolation,
            "resize_mode": resized,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{ref}: {path.name} is no preprocessing that can be done here: {type(error).__name__}, {one_line(error)}."
        ) from error


def _resized(said: dict[str, Any], size: int) -> str:
    """How pictures come to a model's size: by the shorter side and a cut, or both sides at once."""
    asked, cut = said.get("size", {"shortest_edge": size}), said.get("crop_size", size)
    asked = {"shortest_edge": asked} if isinstance(asked, int) else asked
    sides = {cut} if isinstance(cut, int) else {cut["height"], cut["width"]}
    if "shortest_edge" in asked:
        if not said.get("do_center_crop", True) or {asked["shortest_edge"], *sides} != {size}:
            raise ValueError(f"size {asked} and crop_size {cut}, where the model takes pictures of {size}")
        return "shortest"
    if {asked["height"], asked["width"]} != {size}:
        raise ValueError(f"size {asked}, where the model takes pictures of {size}")
    return "squash"


def _tower(said: dict[str, Any]) -> dict[str, Any]:
    width, hidden = said["hidden_size"], said["intermediate_size"]
    ratio = hidden / width
    about = {
        "width": width,
        "layers": said["num_hidden_layers"],
        # open_clip rounds width x ratio down
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
    }
    epsilon = said.get("layer_norm_eps", _EPSILON)
    return about if epsilon == _EPSILON else about | {"norm_kwargs": {"eps": epsilon}}
