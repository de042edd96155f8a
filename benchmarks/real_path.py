"""The way that real models take, with nothing downloaded: published architectures, random weights, a small data folder.

    python -m benchmarks.real_path same wider deeper

`same` is the recipe of table 3 on two releases of ViT-B-16, `wider` that of table 1 (ViT-B-16-plus-240), `deeper` that
of table 4 (ViT-L-14): local folders in open_clip's form in place of tags, and a data set of the benchmark in the form
in which `datasets` downloads it. Accuracies mean nothing here; that every stage runs, in what time and memory, does.
Writes benchmarks/results/real_path.md.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Importing the command line sets the environment (telemetry, logging) that every run gets.
import flows.cli  # noqa: F401  # isort: skip
from flows.commands.console import log_to_stderr  # isort: skip
import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from bico.data.hub import HUB
from bico.data.vision8 import CLASS_NAMES
from bico.models.clip.family import CONFIG, WEIGHTS
from bico.reporting.provenance import made_by
from flows.recipes import Recipe, read_recipe
from flows.reproduce import Reproduced, check, reproduce
from flows.services.server import prefect_api
from flows.settings import Settings

RESULTS = Path(__file__).parent / "results"
TASK = "eurosat"


@dataclass(frozen=True)
class Pair:
    recipe: str
    source: str
    target: str


PAIRS = {
    "same": Pair("table3", "ViT-B-16", "ViT-B-16"),
    "wider": Pair("table1", "ViT-B-16", "ViT-B-16-plus-240"),
    "deeper": Pair("table4", "ViT-B-16", "ViT-L-14"),
}
SHORT = {
    "samples": [4],
    "sampling": "random",
    "seeds": [0],
    "test_limit": 8,
    "batch_size": 2,
    "finetune": {"steps": 2, "batch_size": 2, "warmup": 1, "lr": 1e-5},
}


def write_release(folder: Path, architecture: str, seed: int) -> Path:
    """Writes a model of one of open_clip's architectures with random weights, in its local-dir format."""
    torch.manual_seed(seed)
    model = open_clip.create_model(architecture, pretrained=None)
    folder.mkdir(parents=True)
    about = {
        "model_cfg": open_clip.get_model_config(architecture),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    (folder / CONFIG).write_text(json.dumps(about))
    save_file({name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    return folder


def write_data(folder: Path, train: int = 40, test: int = 8) -> Path:
    """Writes pictures of noise as the benchmark's EuroSAT, in the files that a download leaves."""
    import datasets

    names, rng = list(CLASS_NAMES[TASK]), np.random.default_rng(0)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    for split, count in (("train", train), ("test", test)):
        pictures = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(count)]
        rows = {"image": pictures, "label": [n % len(names) for n in range(count)]}
        path = folder / HUB[TASK].folder / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return folder


def shortened(pair: Pair, source: Path, target: Path) -> Recipe:
    """The pair's recipe, with releases in place of tags and as few steps, pictures and sweeps as will do."""
    recipe = read_recipe(pair.recipe)
    # Random weights have nothing to match, and TransFusion's search for it would take most of the time.
    methods = ["transfusion:sweeps=2" if method == "transfusion" else method for method in recipe.shared["methods"]]
    real = {"source": str(source), "target": str(target), "tasks": [f"hub:{TASK}"]}
    return recipe.model_copy(update={"real": real, "shared": recipe.shared | {"methods": methods} | SHORT, "paper": []})


def run(pair: Pair, folder: Path, settings: Settings, progress: bool = False) -> tuple[Reproduced, float]:
    """Runs one pair's recipe from end to end, and tells what it left and the seconds it took."""
    source = write_release(folder / "source", pair.source, seed=1)
    target = write_release(folder / "target", pair.target, seed=2)
    data = [write_data(folder / TASK)]
    recipe = shortened(pair, source, target)
    check(recipe, False, data, settings)
    started = time.perf_counter()
    done = reproduce(recipe, False, data, settings, folder / "out", "python -m benchmarks.real_path", progress)
    return done, time.perf_counter() - started


def main(names: Sequence[str]) -> None:
    log_to_stderr()
    stages, lines = {"computed": 0, "cached": 0}, []
    started = time.perf_counter()
    with prefect_api(), tempfile.TemporaryDirectory() as scratch:
        for name in names:
            pair, folder = PAIRS[name], Path(scratch) / name
            done, seconds = run(pair, folder, Settings.from_environment(home=folder / "home"), sys.stderr.isatty())
            stages = {word: stages[word] + done.stages[word] for word in stages}
            methods = ", ".join(dict.fromkeys(str(row.method) for rows in done.rows.values() for row in rows))
            # The peak of the process so far: pairs run in the order of their size.
            gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            lines.append(
                f"| {pair.source} → {pair.target} | {pair.recipe} | {methods} | {seconds:.0f} | {gigabytes:.1f} |"
            )
            print(lines[-1], flush=True)
            # After each pair: the largest may not fit into the machine, and the others should not be lost with it.
            command = " ".join(["python -m benchmarks.real_path", *names[: len(lines)]])
            text = [
                "# real_path",
                "",
                *made_by(command, time.perf_counter() - started, stages),
                "Random weights and pictures of noise; N=4, two steps of fine-tuning and of TransFusion's search, 8 test pictures.",
                "",
                "| pair | recipe | methods | seconds | peak memory (GB) |",
                "| --- | --- | --- | ---: | ---: |",
                *lines,
            ]
            (RESULTS / "real_path.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", choices=[*PAIRS], default=["same"])
    main(parser.parse_args().pairs)
