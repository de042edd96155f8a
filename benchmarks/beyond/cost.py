"""What each recipe costs beside BiCo's: passes over samples, CPU time and memory, at 100 labels and 500 unlabelled inputs.

    python -m benchmarks.beyond.cost > benchmarks/beyond/cost.md

mini-a to mini-b on digits, through the library's own `run`, one thread. The expert's predictions are made within: whoever
has no labels has to make them. A pass is counted per sample and model, a backward pass by itself. Nothing is shared between
recipes here, which the pipeline does.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.beyond.setting import Draw
from benchmarks.beyond.sides import Expert, batches, open_side
from benchmarks.measure import Clock, PeakMemory, machine, table
from bico.calibration.pseudo_labels import expert_scores, pseudo_labels
from bico.finetune import MINI
from bico.last_steps import Samples
from bico.methods.variant import get_variant, run
from bico.models.clip.vit import ClipViT

RECIPES = [
    ("bico", False),
    ("bico", True),
    ("bico+projection", True),
    ("bico+head", True),
    ("none+projection", True),
    ("none+head", True),
    ("none+tune:steps=30", True),
    ("bico+tune:steps=30", True),
]
"""(method, with unlabelled inputs)."""
LABELS, UNLABELLED, REPEATS = 100, 500, 3


@contextmanager
def counted(models: dict[str, ClipViT]) -> Iterator[Counter]:
    """Counts samples that go forward and backward through each image tower."""
    found: Counter[str] = Counter()

    def watch(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, inputs: Any, output: torch.Tensor) -> None:
            found[f"forward {name}"] += len(output)
            if output.requires_grad:
                found[f"backward {name}"] += len(output)

        return hook

    handles = [model.model.visual.register_forward_hook(watch(name)) for name, model in models.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def main() -> None:
    clock = Clock("cpu")
    source, target = (open_side(f"zoo:{name}", "digits", (), 500) for name in ("mini-a", "mini-b"))
    expert = Expert.of(source, 0, Path(sys.argv[1] if len(sys.argv) > 1 else "out/beyond"))
    draw = Draw.of(len(source.pool), LABELS, UNLABELLED, 0)
    places = source.pool[draw.labelled], source.pool[draw.unlabelled]
    labels = source.train.split.labels[places[0]]
    models, heads = (source.model, target.model), (source.head, target.head)

    def once(method: str, with_unlabelled: bool) -> None:
        labelled = batches(source, target, places[0], labels)
        unlabelled = []
        if with_unlabelled:
            scores = expert_scores(source.model, expert.tau, source.inputs(places[1]), source.head)
            unlabelled = batches(source, target, places[1], pseudo_labels(scores))
        run(get_variant(method, lr=MINI.lr), expert.tau, *models, Samples(labelled, unlabelled), heads)

    once("bico", False)  # warm
    lines, base = [], 0.0
    for method, with_unlabelled in RECIPES:
        with counted({"A": source.model, "B": target.model}) as passes:
            once(method, with_unlabelled)
        memory = PeakMemory()
        seconds = clock.median(partial(once, method, with_unlabelled), REPEATS)
        base = base or seconds
        counts = [str(passes[name]) for name in ("forward A", "forward B", "backward A", "backward B")]
        lines.append(
            [method, f"{LABELS} + {UNLABELLED if with_unlabelled else 0}", *counts, f"{seconds:.1f}", f"{seconds / base:.1f}",
             f"{memory.read() / 1e9:.2f}"]
        )  # fmt: skip
    print(
        f"# What recipes cost\n\nMade by `python -m benchmarks.beyond.cost` on {date.today()}.\n{machine()}. Medians of {REPEATS} runs.\n"
    )
    header = ["recipe", "labels + unlabelled", "forward A", "forward B", "backward A", "backward B", "CPU s",
              "of BiCo's", "peak memory, GB"]  # fmt: skip
    print(table(header, lines))


if __name__ == "__main__":
    main()
