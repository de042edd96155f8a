"""Accuracy with the fast maps beside accuracy with those of plain SVDs.

    python -m benchmarks.accuracy [--source zoo:mini-a --target zoo:mini-b --task digits --samples 20,100]

Fine-tunes an expert of the source, calibrates once, and carries the expert over twice: by `procrustes` and by `by_svd`.
"""

import argparse
import dataclasses
from collections.abc import Callable

import torch

from benchmarks.measure import Solved, machine, table
from bico.calibration import Batch, cross_covariances, split_at
from bico.data.tasks import Prepared, get_task
from bico.evaluate import accuracy
from bico.finetune import MINI, finetune
from bico.methods import Pair
from bico.methods.bico import BiCo
from bico.models.loading import load, resolve
from bico.procrustes import RANK_TOLERANCE, AlignmentMap, by_svd, procrustes
from bico.sampling import draw_samples
from bico.task_vector import subtract


def solve(covariances: dict, solver: Callable[..., AlignmentMap]) -> dict[tuple, AlignmentMap]:
    completion = BiCo().completion
    return {key: solver(cross, completion, RANK_TOLERANCE) for key, cross in covariances.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="zoo:mini-a")
    parser.add_argument("--target", default="zoo:mini-b")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--samples", default="20,100")
    parser.add_argument("--steps", type=int, default=MINI.steps)
    given = parser.parse_args()
    counts = sorted(int(n) for n in given.samples.split(","))
    source, target = (load(resolve(name), torch.device("cpu")) for name in (given.source, given.target))
    task = get_task(given.task)
    train, test = task.open("train"), task.open("test")
    ours, theirs = Prepared(train, source.prepare), Prepared(train, target.prepare)
    heads = tuple(model.head(task.class_names, task.prompts) for model in (source, target))
    recipe = dataclasses.replace(MINI, steps=given.steps)
    tau = subtract(finetune(source, ours.batch, len(train), heads[0], recipe, progress=False), source.state())
    indices = draw_samples(len(train), counts[-1], seed=0)
    batches = (Batch(ours.batch(indices[s])[0], *theirs.batch(indices[s])) for s in split_at(len(indices), 32, counts))
    pair, rows = Pair.of(source, target), []
    measured = Prepared(test, target.prepare)
    for samples, covariances in cross_covariances(source, target, batches, heads, BiCo().needs.signals, counts):
        fast, slow = solve(covariances, procrustes), solve(covariances, by_svd)
        scores = []
        for maps in (fast, slow):
            with target.updated(BiCo().transport(tau, pair, Solved(samples, maps))):
                scores.append(accuracy(target, measured.batches(256), heads[1]))
        difference = max(float((fast[key].matrix - slow[key].matrix).abs().max()) for key in fast)
        ranks = sum(fast[key].rank != slow[key].rank for key in fast)
        rows.append([samples, *(f"{score:.4f}" for score in scores), f"{difference:.0e}", f"{ranks} of {len(fast)}"])
    print(f"{given.source} to {given.target}, {given.task}. {machine()}\n")
    print(table(["N", "procrustes, %", "by_svd, %", "largest difference of a map", "ranks that differ"], rows))


if __name__ == "__main__":
    main()
