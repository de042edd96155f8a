"""Time and memory of a transfer between two real encoders, beside the bare passes that nothing can avoid.

    python -m benchmarks.real.cost [--samples 100] [--repeats 3] --data FOLDER

MiniLM to MPNet on trec, in memory, by BiCo: passes, sums, maps, and a task vector of the source's size carried over. Bare
passes are forward and backward of both models over the same texts, without hooks. Set OMP_NUM_THREADS.
"""

import argparse
import statistics
from pathlib import Path

import torch

from benchmarks.measure import Clock, PeakMemory, machine
from benchmarks.real.models import MINILM, MPNET
from bico.calibration.covariances import Batch, split_at
from bico.calibration.sampling import draw_samples
from bico.models.loading import resolve
from bico.models.protocol import PROBE
from bico.rehoming.in_memory import transfer
from tasks.inputs import TaskRef, open_head, open_model, open_split

BATCH = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder that holds a folder per task")
    parser.add_argument("--models", type=Path, default=Path("out/real-models"))
    Clock.add_option(parser)
    given = parser.parse_args()
    clock = Clock(given.clock)
    files = [resolve(str(given.models / name)) for name in (MINILM, MPNET)]
    task = TaskRef("trec", (str(given.data / "trec"),), PROBE)
    models = [open_model(one, "cpu") for one in files]
    ours, theirs = (open_split(one, "cpu", task, "train") for one in files)
    chosen = draw_samples(len(ours), given.samples, seed=0)
    heads = tuple(open_head(one, "cpu", task, tuple(chosen.tolist())) for one in files)
    batches = []
    for part in split_at(len(chosen), BATCH, [len(chosen)]):
        inputs, labels = ours.batch(chosen[part])
        batches.append(Batch(inputs, theirs.batch(chosen[part])[0], labels))
    tau = {name: 1e-3 * torch.randn(t.shape) for name, t in models[0].state().items()}

    def bare() -> None:
        for model, head, side in zip(models, heads, ("source", "target"), strict=True):
            first = next(p for p in model.trainable() if p.ndim == 2).requires_grad_()
            for batch in batches:
                model.loss(getattr(batch, side), batch.labels, head).backward()
            first.requires_grad_(False)
            first.grad = None

    bare()  # memory that is touched for the first time takes longer
    passes = statistics.median(clock.timed(bare)[0] for _ in range(given.repeats))
    memory = PeakMemory()
    whole = statistics.median(
        clock.timed(lambda: transfer(tau, models[0], models[1], batches, heads))[0] for _ in range(given.repeats)
    )
    peak = memory.read()
    print(f"{machine()}. {clock}, medians of {given.repeats}.")
    print(
        f"{MINILM} to {MPNET}, trec, N={given.samples}: bare passes {passes:.2f} s; the whole {whole:.2f} s, "
        f"{whole / passes:.2f} of them; peak of memory {peak / 1e9:.2f} GB, of which models and texts were there before."
    )


if __name__ == "__main__":
    main()
