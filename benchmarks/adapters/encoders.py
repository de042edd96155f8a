"""A LoRA adapter of a real text encoder, trained with PEFT on a task of classes, and carried to another: all-MiniLM to MPNet.

python -m benchmarks.adapters.encoders --data FOLDER [--models out/real-models] [--samples 50]

FOLDER holds a folder for every task; the models are those of `make real-models`. Rows go to out/adapters/encoders-TASK.json.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.adapters.carried import transfer
from benchmarks.adapters.train import Recipe, fit
from benchmarks.real.models import MINILM, MPNET
from bico.data.tasks import get_task
from bico.models.loading import load, resolve

RECIPE = Recipe("all-linear", seed=0, lr=5e-4)
"""At ten times the rate at which whole encoders are tuned."""
METHODS = ["bico", "bico:strength=effect", "theseus", "cross-lora", "none+lora"]


def train(model: Path, data: Path, task: str, folder: Path) -> Path:
    """Trains an adapter beside a linear classifier of the pooled features, which is left behind, unless it is there."""
    if (folder / "made.json").is_file():
        return folder
    encoder, found = load(resolve(str(model))), get_task(task, [data / task])
    split, names = found.open("train"), found.class_names
    torch.manual_seed(RECIPE.seed)
    head = nn.Linear(encoder.features(encoder.prepare([split.example(0)])).shape[1], len(names))

    def loss(chosen: list[int]) -> Tensor:
        features = encoder.features(encoder.prepare([split.example(row) for row in chosen]))
        return nn.functional.cross_entropy(head(features), split.labels[chosen])

    return fit(encoder.model, loss, len(split), RECIPE, folder, [*head.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--models", type=Path, default=Path("out/real-models"))
    parser.add_argument("--task", default="trec")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--test-limit", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("out/adapters"))
    given = parser.parse_args()
    source, target = (given.models / name for name in (MINILM, MPNET))
    adapter = train(source, given.data, given.task, given.out / "lora" / f"{MINILM}-{given.task}")
    brief = {
        "source": str(source), "target": str(target), "tasks": [given.task], "methods": METHODS,
        "samples": [given.samples], "test_limit": given.test_limit,
    }  # fmt: skip
    found = transfer(brief, given.data / given.task, [adapter], given.out / "runs" / f"encoders-{given.task}")
    (given.out / f"encoders-{given.task}.json").write_text(json.dumps(found["rows"], indent=1) + "\n")
    for row in found["rows"]:
        print(row["method"], row["samples"] or "", "" if row["seed"] is None else row["seed"], f"{row['accuracy']:.1f}")


if __name__ == "__main__":
    main()
