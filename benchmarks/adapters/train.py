"""LoRA adapters of a mini decoder, trained with PEFT on texts to complete: what a transfer is given.

python -m benchmarks.adapters.train MODEL FOLDER-OF-TEXTS RECIPE OUT
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from bico.data.text import Completion
from bico.finetune import FinetuneConfig, learning_rate
from bico.models.decoder.decoder import Decoder


@dataclass(frozen=True)
class Recipe:
    """Which maps of a decoder get a LoRA, and how it is trained."""

    modules: str | tuple[str, ...]
    """As PEFT's `target_modules`."""
    seed: int
    rank: int = 8
    alpha: int = 16
    steps: int = 250
    batch_size: int = 16
    lr: float = 5e-3
    """Peak rate of AdamW; a LoRA is trained at ten times the rate of whole weights, and the minis' is 5e-4."""


RECIPES = {
    "all": Recipe("all-linear", seed=0),
    "attention": Recipe(("q_proj", "k_proj", "v_proj", "o_proj"), seed=1),
}


def train(model: Path, texts: Path, recipe: Recipe, folder: Path) -> Path:
    """Trains an adapter of a decoder, unless it is there, and returns its folder: PEFT's two files, and how it was made."""
    if (folder / "made.json").is_file():
        return folder
    decoder = Decoder(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
        model.name,
    )
    rows = [json.loads(line) for line in (texts / "train.jsonl").read_text().splitlines()]
    examples = [Completion(row["prompt"], row["completion"]) for row in rows]

    def loss(chosen: list[int]) -> Tensor:
        return decoder.loss(decoder.prepare([examples[row] for row in chosen]), torch.zeros(len(chosen))) / len(chosen)

    return fit(decoder.model, loss, len(examples), recipe, folder, task_type="CAUSAL_LM")


def fit(
    model: nn.Module,
    loss: Callable[[list[int]], Tensor],
    count: int,
    recipe: Recipe,
    folder: Path,
    beside: Sequence[nn.Parameter] = (),
    **about: Any,
) -> Path:
    """Trains a LoRA of a model, whose maps PEFT replaces in place, and writes it.

    Arguments:
        loss: Of the samples of these indices, per sample.
        count: How many samples there are.
        beside: What else is trained, and not written.
        about: More of PEFT's configuration.
    """
    modules = recipe.modules if isinstance(recipe.modules, str) else list(recipe.modules)
    torch.manual_seed(recipe.seed)
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=modules, **about)
    wrapped = get_peft_model(model, config)
    trained = [*(p for p in wrapped.parameters() if p.requires_grad), *beside]
    optimiser = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=0.0)
    schedule = FinetuneConfig(steps=recipe.steps, warmup=recipe.steps // 10, lr=recipe.lr)
    order, drawn, losses = torch.Generator().manual_seed(recipe.seed), [], []
    started = time.process_time()
    for step in range(recipe.steps):
        if len(drawn) < recipe.batch_size:
            drawn = torch.randperm(count, generator=order).tolist()
        batch, drawn = drawn[: recipe.batch_size], drawn[recipe.batch_size :]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, schedule)
        optimiser.zero_grad()
        (found := loss(batch)).backward()
        optimiser.step()
        losses.append(float(found.detach()))
    wrapped.save_pretrained(folder)
    last = sum(losses[-20:]) / len(losses[-20:])
    made = asdict(recipe) | {"loss per text": round(last, 4), "cpu seconds": round(time.process_time() - started)}
    (folder / "made.json").write_text(json.dumps(made) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print((train(given.model, given.texts, RECIPES[given.recipe], given.out) / "made.json").read_text())


if __name__ == "__main__":
    main()
