"""Contrastive pre-training of a small CLIP on generated, captioned pictures."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from bico.errors import ConfigError, nearest
from zoo_build.captions_tokenizer import CONTEXT, train_tokenizer
from zoo_build.pictures import Pool, draw_pool
from zoo_build.training import Watch, descend, every, load_recipe, write_weights

MEAN, STD = 0.5, 0.27
"""Of pixel values in 0..1, the same for all channels."""


Optimiser = Literal["adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class ClipPretraining:
    """Everything that determines a model of the zoo."""

    distribution: str
    """`a`, `b`, or `ab` for a mixture."""
    seed: int
    """Of the pictures, the initial weights and the order of batches."""
    pictures: int = 80_000
    """Pictures drawn before training; every step augments them anew."""
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    warm_up: int = 150
    """Steps until the learning rate is at its peak; it falls as a cosine from there."""
    weight_decay: float = 0.05
    optimiser: Optimiser = "adamw"
    """`muon` steps by the polar factor of the momentum in the matrices of the transformer blocks (Muon: An optimizer
    for hidden layers, Jordan et al., 2024; scaled to AdamW's step size as by Liu et al., 2025) and by AdamW elsewhere."""
    patch_dropout: float = 0.0
    """Share of the patches hidden from the image tower, except in the last fifth of the steps: training costs less by
    nearly that share, at little loss (Scaling Language-Image Pre-training via Masking, Li et al., 2023)."""
    image_size: int = 28
    """Pixels along each side of what the model sees."""
    patch_size: int = 4
    width: int = 128
    layers: int = 6
    head_width: int = 32
    embed_dim: int = 96
    text_width: int = 128
    text_layers: int = 3

    def __post_init__(self) -> None:
        if self.optimiser not in get_args(Optimiser):
            raise ConfigError(f"optimiser={self.optimiser!r}: {nearest(self.optimiser, get_args(Optimiser))}")

    @classmethod
    def load(cls, path: Path) -> "ClipPretraining":
        """Reads a recipe from YAML.

        Raises:
            ConfigError: If the file has a key that no recipe has, or lacks one that every recipe has.
        """
        return load_recipe(cls, path)

    def model_config(self, vocabulary: int) -> dict:
        """Returns the `model_cfg` of open_clip for this recipe and vocabulary size."""
        return {
            "embed_dim": self.embed_dim,
            "quick_gelu": False,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.width,
                "layers": self.layers,
                "head_width": self.head_width,
                "mlp_ratio": 4.0,
                "pool_type": "tok",
            },
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "width": self.text_width,
                "heads": self.text_width // 32,
                "layers": self.text_layers,
                # Any name does: open_clip reads the tokenizer from the model's own directory.
                "hf_tokenizer_name": "local",
            },
        }


def build(recipe: ClipPretraining, vocabulary: int) -> CLIP:
    """Returns the untrained model of a recipe, its weights drawn from the recipe's seed."""
    config = recipe.model_config(vocabulary)
    text = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        vision = config["vision_cfg"] | {"patch_dropout": recipe.patch_dropout}
        return CLIP(embed_dim=recipe.embed_dim, vision_cfg=vision, text_cfg=text, quick_gelu=False)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, meanings: Tensor) -> Tensor:
    """Cross-entropy of CLIP in which all pairs of one meaning count as matches, in both directions.

    Arguments:
        images: Unit image features (batch, dim).
        texts: Unit text features (batch, dim).
        scale: Inverse temperature, a scalar.
        meanings: An id of what each text says (batch,); equal ids are one meaning.

    Returns:
        The loss, a scalar; its unit is nats.
    """
    logits = (scale * images @ texts.T).float()
    matches = (meanings[:, None] == meanings).float()
    matches = matches / matches.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Shifts, turns, scales and re-lights pictures slightly, and brings them to the model's size.

    Arguments:
        images: (batch, 3, side, side) in 0..255, uint8.
        size: Side of the result.
        generator: The source of randomness.

    Returns:
        (batch, 3, size, size), normalised as the model wants it.
    """
    draw = torch.rand(len(images), 6, generator=generator) * 2 - 1
    angle, zoom = draw[:, 0] * 0.08, 1 + 0.1 * draw[:, 1]
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [torch.stack([cos, -sin, 0.08 * draw[:, 2]], 1), torch.stack([sin, cos, 0.08 * draw[:, 3]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 3, size, size], align_corners=False)
    pixels = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
    gain, bias = 1 + 0.15 * draw[:, 4], 0.08 * draw[:, 5]
    return (pixels.sub(0.5) * gain[:, None, None, None] + 0.5 + bias[:, None, None, None] - MEAN) / STD


def learning_rate(step: int, recipe: ClipPretraining) -> float:
    """Returns the learning rate of a step: a linear rise, then a cosine down to zero."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _optimisers(model: CLIP, recipe: ClipPretraining) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())
    muon = recipe.optimiser == "muon"
    hidden = {name: p for name, p in named.items() if muon and "resblocks" in name and p.ndim == 2}
    others = [p for name, p in named.items() if name not in hidden]
    decayed = [p for p in others if p.ndim >= 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    ]
    if muon:
        weights = list(hidden.values())
        optimisers.append(
            torch.optim.Muon(weights, lr=1.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimisers


def train(
    model: CLIP,
    tokenizer: PreTrainedTokenizerFast,
    pool: Pool,
    recipe: ClipPretraining,
    progress: bool = True,
    bfloat16: bool = True,
    checkpoint: Callable[[int], None] | None = None,
) -> list[float]:
    """Trains a model in place.

    Arguments:
        model: As `build` returns it.
        tokenizer: The zoo's tokenizer.
        pool: The pictures and captions to train on.
        recipe: Steps, batch size and learning rate.
        progress: Whether to show a progress bar.
        bfloat16: Whether to multiply matrices in bfloat16, which is faster on CPUs that know it; weights stay float32.
        checkpoint: Called every 200 steps with the number of steps done.

    Returns:
        The loss of each step, in nats.
    """
    texts = [caption.text for captions in pool.captions for caption in captions]
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
    tokens = tokens.input_ids.view(len(pool.captions), -1, CONTEXT)
    ids: dict[tuple[str, ...], int] = {}
    meanings = torch.tensor([[ids.setdefault(c.meaning, len(ids)) for c in captions] for captions in pool.captions])
    images = torch.from_numpy(pool.images).permute(0, 3, 1, 2)

    generator = torch.Generator().manual_seed(recipe.seed)

    def steps() -> Iterator[Tensor]:
        order = torch.empty(0, dtype=torch.int64)
        for step in range(recipe.steps):
            if recipe.patch_dropout and step == recipe.steps * 4 // 5:
                model.visual.patch_dropout.prob = 0.0
            if len(order) < recipe.batch_size:
                order = torch.randperm(len(images), generator=generator)
            batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
            which = torch.randint(tokens.shape[1], (len(batch),), generator=generator)
            # The plain attention kernel trains these short sequences almost twice as fast as the fused one on a CPU.
            with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
                seen = model.encode_image(augment(images[batch], recipe.image_size, generator), normalize=True)
                read = model.encode_text(tokens[batch, which], normalize=True)
            yield contrastive_loss(seen.float(), read.float(), model.logit_scale.exp(), meanings[batch, which])

    kept = every(200, checkpoint)

    def after(done: int) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        kept(done)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # patch dropout draws from torch's global generator
        rate = partial(learning_rate, recipe=recipe)
        return descend(model, _optimisers(model, recipe), steps(), recipe.steps, rate, progress, after)


def save(model: CLIP, tokenizer: PreTrainedTokenizerFast, recipe: ClipPretraining, folder: Path) -> None:
    """Writes a model as open_clip's `local-dir:` wants it: configuration, float16 weights, tokenizer.

    Arguments:
        model: The trained model.
        tokenizer: The tokenizer that it was trained with.
        recipe: Where the configuration comes from.
        folder: Made if it does not exist; files of an earlier model are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    channels = {"mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": recipe.model_config(len(tokenizer)), "preprocess_cfg": channels}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    # The causal mask is no weight: open_clip makes it anew.
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "attn_mask"}
    write_weights(folder / "open_clip_model.safetensors", weights, recipe)


def run(recipe: ClipPretraining, folder: Path, progress: bool = True, threads: int = 1) -> dict:
    """Builds one model from nothing but its recipe, and writes it; every 200 steps, too.

    Arguments:
        recipe: What to build.
        folder: Where to write it.
        progress: Whether to show progress bars.
        threads: How many threads torch may use (see `zoo_build.training.Watch`).

    Returns:
        How it went: `Watch.record`.

    Raises:
        ConfigError: If the recipe's distribution does not exist or its fonts are not installed.
    """
    watch = Watch(threads)
    pool = draw_pool(recipe.distribution, recipe.pictures, recipe.seed, progress)
    tokenizer = train_tokenizer()
    model = build(recipe, len(tokenizer))
    losses = train(
        model, tokenizer, pool, recipe, progress, checkpoint=lambda _: save(model, tokenizer, recipe, folder)
    )
    save(model, tokenizer, recipe, folder)
    return watch.record(model, losses, image=model.visual)
