"""Accuracy with the fast maps beside accuracy with those of plain SVDs.

    python -m benchmarks.accuracy [--source zoo:mini-a --target zoo:mini-b --task digits --samples 20,100]

Fine-tunes an expert of the source, calibrates, and carries the expert over: by `procrustes`, by `by_svd`, and by
`procrustes` of covariances whose rows were rounded to bfloat16, as products in that precision would have them.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.measure import Solved, machine, table
from bico.calibration.covariances import Batch, cross_covariances, split_at
from bico.calibration.sampling import draw_samples
from bico.data.tasks import Prepared, get_task
from bico.evaluation.accuracy import accuracy
from bico.finetune import MINI, finetune
from bico.linalg.matmul import add_product, product
from bico.linalg.procrustes import RANK_TOLERANCE, AlignmentMap, by_svd, procrustes
from bico.methods import Pair
from bico.methods.bico import BiCo
from bico.models.loading import load, resolve
from bico.task_vector import subtract


def solve(covariances: dict, solver: Callable[..., AlignmentMap]) -> dict[tuple, AlignmentMap]:
    completion = BiCo().completion
    return {key: solver(cross, completion, RANK_TOLERANCE) for key, cross in covariances.items()}


@contextmanager
def in_bfloat16() -> Iterator[None]:
    """Within it, what is multiplied for covariances is rounded; sums stay float32, as the hardware has them."""

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().to(tensor.dtype)

    coarse = {
        "product": lambda a, b: product(rounded(a), rounded(b)),
        "add_product": lambda total, ours, theirs: add_product(total, rounded(ours), rounded(theirs)),
    }
    with patch.multiple("bico.calibration.covariances", **coarse):
        yield


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
    recipe = dataclasses.replace(MINI, steps=given.steps, warmup=given.steps // 10)
    tau = subtract(finetune(source, ours.batch, len(train), heads[0], recipe), source.state())
    indices = draw_samples(len(train), counts[-1], seed=0)
    batches = [Batch(ours.batch(indices[s])[0], *theirs.batch(indices[s])) for s in split_at(len(indices), 32, counts)]
    pair, rows = Pair.of(source, target), []
    measured = Prepared(test, target.prepare)

    def score(samples: int, maps: dict) -> float:
        with target.updated(BiCo().transport(tau, pair, Solved(samples, maps))):
            return accuracy(target, measured.batches(256), heads[1])

    def collected() -> Iterator[tuple[int, dict]]:
        return cross_covariances(source, target, batches, heads, BiCo().needs.signals, counts)

    with in_bfloat16():
        rounded = [solve(covariances, procrustes) for _, covariances in collected()]
    for (samples, covariances), coarse in zip(collected(), rounded, strict=True):
        fast, slow = solve(covariances, procrustes), solve(covariances, by_svd)
        line = [samples, f"{score(samples, fast):.4f}"]
        for other in (slow, coarse):
            difference = max(float((fast[key].matrix - other[key].matrix).abs().max()) for key in fast)
            ranks = sum(fast[key].rank != other[key].rank for key in fast)
            line += [f"{score(samples, other):.4f}", f"{difference:.0e}", f"{ranks} of {len(fast)}"]
        rows.append(line)
    print(f"{given.source} to {given.target}, {given.task}. {machine()}\n")
    beside = [f"{name}{what}" for name in ("by_svd", "bfloat16") for what in (", %", ": largest difference", ": ranks")]
    print(table(["N", "procrustes, %", *beside], rows))


if __name__ == "__main__":
    main()
