"""Tiny model releases on disk, in open_clip's local-dir format, with its default tokenizer."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from bico.models.clip.family import CONFIG, WEIGHTS
from tests.tiny import config


def write_release(folder: Path, seed: int, **shape: int) -> Path:
    """Writes a model with random weights; the same seed and shape give the same files."""
    cfg = config(**shape)
    cfg["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**cfg)
    folder.mkdir(parents=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    return folder
