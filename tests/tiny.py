"""Tiny models of open_clip's own class, with random weights, in float64."""

import weakref
from dataclasses import replace
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.signals import Signal
from bico.methods import Gathered, Method, Pair
from bico.models.clip.vit import ClipViT
from bico.rehoming.in_memory import gather

CLASSES = 5


def config(width: int = 16, layers: int = 2, image: int = 12, patch: int = 4, embed: int = 8) -> dict:
    vision = {"image_size": image, "layers": layers, "width": width, "head_width": 8, "patch_size": patch}
    text = {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    return {"embed_dim": embed, "vision_cfg": vision, "text_cfg": text}


def tokenizer(texts: list[str]) -> Tensor:
    """One id per character, 63 (the highest) at the end, as open_clip's text pooling wants it."""
    rows = [[1 + ord(c) % 60 for c in text[-11:]] + [63] for text in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


def tiny_clip(seed: int, dtype: torch.dtype = torch.float64, **shape: int) -> ClipViT:
    torch.manual_seed(seed)
    model = open_clip.model.CLIP(**config(**shape)).to(dtype)
    for parameter in model.visual.parameters():
        if parameter.ndim == 1:  # biases and norms start at 0 and 1, where many mistakes do not show
            parameter.data += 0.1 * torch.randn_like(parameter)
    return ClipViT(model, preprocess=None, tokenizer=tokenizer, name=f"tiny-{seed}")


def head(model: ClipViT) -> Tensor:
    return model.head([f"class {n}" for n in range(CLASSES)], ["a {}", "the {}."])


def pictures(count: int, image: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, image, image, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def size(model: ClipViT) -> int:
    return model.model.visual.image_size[0]


def pair_of(source: ClipViT, target: ClipViT) -> Pair:
    return Pair.of(source, target)


def covariances_of(
    source: ClipViT,
    target: ClipViT,
    labels: Tensor,
    signals: list[Signal],
    snapshots: list[int],
    batch_size: int = 64,
    same: bool = True,
) -> dict[int, dict]:
    """Covariances of random pictures; each model sees them at its own size (`same`: the very same tensors)."""
    ours = pictures(len(labels), size(source))
    theirs = ours if same and size(source) == size(target) else pictures(len(labels), size(target))
    batches = (Batch(ours[s], theirs[s], labels[s]) for s in split_at(len(labels), batch_size, snapshots))
    heads = head(source), head(target)
    return dict(cross_covariances(source, target, batches, heads, signals, snapshots))


def evidence_for(
    method: Method, source: ClipViT, target: ClipViT, count: int = 40, batch_size: int = 64, rtol: float = 1e-6
) -> Gathered:
    """What the method needs, from `count` random pictures."""
    labels = torch.arange(count) % CLASSES
    images = {size(model): pictures(count, size(model)) for model in (source, target)}
    batches = [
        Batch(images[size(source)][part], images[size(target)][part], labels[part])
        for part in split_at(count, batch_size, [count])
    ]
    return replace(gather(source, target, batches, (head(source), head(target)), method), rtol=rtol)


def random_task_vector(model: ClipViT, seed: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {k: 0.1 * torch.randn(v.shape, dtype=v.dtype, generator=generator) for k, v in model.state().items()}


def count_alive(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[int]:
    """At every map that a module solves from now on: how many of the covariances that it has solved are still in memory."""
    solve, seen, alive = module.procrustes, [], []

    def counted(cross: Tensor, *args: Any) -> Any:
        seen.append(weakref.ref(cross))
        alive.append(sum(ref() is not None for ref in seen))
        return solve(cross, *args)

    monkeypatch.setattr(module, "procrustes", counted)
    return alive


def count_passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts forward and backward passes of all models from now on."""
    counts = {"forward": 0, "backward": 0}
    forward, backward = ClipViT.features, Tensor.backward

    def counted_forward(self: ClipViT, images: Tensor) -> Tensor:
        counts["forward"] += 1
        return forward(self, images)

    def counted_backward(self: Tensor, *args: object, **kwargs: object) -> None:
        counts["backward"] += 1
        backward(self, *args, **kwargs)

    monkeypatch.setattr(ClipViT, "features", counted_forward)
    monkeypatch.setattr(Tensor, "backward", counted_backward)
    return counts
