"""How fast this machine is at what a run is made of: measured on the spot, on one batch that each model is shown."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bico.evaluation.probe import fit_probe
from bico.models.loading import ModelFiles
from bico.models.protocol import Completing, Model
from tasks.inputs import TaskRef, open_model, open_split

FIRST, MORE = 16, 128
"""Samples of the batch that is measured; more where that took less than `QUICK`, since large batches are what is run and cost
less a sample."""
QUICK, ENOUGH = 0.1, 0.5
"""Seconds of a pass after which no larger batch is tried, and of all after which it is not repeated."""


@dataclass(frozen=True)
class Speed:
    """One model on one task's samples."""

    forward: float
    """Seconds of a sample through the model."""
    train: float
    """The same and back, with gradients of all that fine-tuning changes."""
    prepare: float
    """Seconds until an example of the data is what the model reads."""
    sample: int
    """Bytes of a prepared example."""
    saved: int
    """Bytes that a sample's pass forward keeps for the one backward, weights aside."""


def measure(device: str, files: ModelFiles, task: TaskRef) -> Speed:
    """Shows a model some of a task's test samples."""
    model, data = open_model(files, device), open_split(files, device, task, "test")
    data.batch(torch.arange(min(1, len(data))))  # sets things up
    count = min(FIRST, len(data) - 1) or 1
    rows = torch.arange(len(data))[-count:]
    started, kept = time.perf_counter(), data.kept_bytes
    inputs, _ = data.batch(rows)
    prepared = (time.perf_counter() - started) / count
    sample = max(1, (data.kept_bytes - kept) // count)
    work = _work(model)
    with torch.no_grad():
        work(inputs)  # the first call sets things up, too
        seconds = timed(lambda: work(inputs), device)
        if seconds < QUICK and len(data) > count:
            count = min(MORE, len(data))
            inputs, _ = data.batch(torch.arange(count))
            seconds = timed(lambda: work(inputs), device)
        if seconds < ENOUGH:
            seconds = min(seconds, *(timed(lambda: work(inputs), device) for _ in range(2)))
    both, saved = _there_and_back(model, inputs[:FIRST], work, device)
    return Speed(seconds / count, max(both / len(inputs[:FIRST]), seconds / count), prepared, sample, saved)


def _work(model: Model) -> Callable[[Tensor], Tensor]:
    """A pass forward, whose result depends on all that fine-tuning changes; of texts that are completed with the scores of all
    words, which may cost as much as the rest.
    """
    if isinstance(model, Completing):
        return lambda inputs: model.answers(inputs).costs
    return model.features


def _there_and_back(model: Model, inputs: Tensor, work: Callable[[Tensor], Tensor], device: str) -> tuple[float, int]:
    """Seconds of a batch forward and backward, and the bytes that each sample keeps between them."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state().values()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            saved[place.data_ptr()] = place.nbytes()
        return tensor

    leaves = [tensor for tensor in model.trainable() if not tensor.requires_grad]
    for leaf in leaves:
        leaf.requires_grad_(True)

    def there_and_back() -> None:
        saved.clear()
        with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
            outcome = work(inputs).float().sum()
        outcome.backward()

    try:
        seconds = timed(there_and_back, device)
        if seconds < ENOUGH:
            seconds = min(seconds, timed(there_and_back, device))
        return seconds, sum(saved.values()) // len(inputs)
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)
            leaf.grad = None


def product_rate(device: str) -> float:
    """Operations per second of a product of matrices."""
    size = 768
    matrix = torch.ones(size, size, device=device)
    matrix @ matrix
    return 2 * size**3 / max(1e-6, min(timed(lambda: matrix @ matrix, device) for _ in range(2)))


def fit_seconds(samples: int, width: int, classes: int) -> float:
    """Seconds of fitting a probe to so many samples: of at most a hundred made-up ones, and in proportion."""
    some = max(8, min(samples, 100))
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(some) % classes
    features = torch.randn(some, width, generator=generator) + labels[:, None] / classes
    return timed(lambda: fit_probe(features, labels, classes), "cpu") * max(1.0, samples / some)


def timed(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
