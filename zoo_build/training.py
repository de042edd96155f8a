"""What pre-training every family of the zoo shares: recipes from YAML, the loop, the file of weights, the record."""

import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from bico.errors import ConfigError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


def load_recipe(kind: type[R], path: Path) -> R:
    """Reads a recipe, a dataclass, from YAML; its lists become tuples.

    Raises:
        ConfigError: If the file has a key that no such recipe has, or lacks one that every one has.
    """
    names = [field.name for field in fields(kind)]
    values = yaml.safe_load(path.read_text())
    for key in values:
        if key not in names:
            raise ConfigError(f"{path.name}: unknown key {key!r}: {nearest(key, names)}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except TypeError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def rise_and_fall(step: int, warm_up: int, steps: int) -> float:
    """Returns the share of the peak learning rate at a step: a linear rise, then a line down to zero."""
    return (step + 1) / warm_up if step < warm_up else (steps - step) / max(1, steps - warm_up)


def every(steps: int, checkpoint: Callable[[int], None] | None) -> Callable[[int], None]:
    """Returns what `descend` calls after each step, to have a checkpoint made after every so many of them."""

    def after(done: int) -> None:
        if checkpoint and done % steps == 0:
            checkpoint(done)

    return after


def descend(
    model: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    losses: Iterator[Tensor],
    steps: int,
    rate: Callable[[int], float],
    progress: bool = True,
    after: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Trains a model in place, its gradients clipped to norm 1.

    Arguments:
        optimisers: The learning rates that their groups have are those at rate 1.
        losses: Gives the loss of each step, a scalar, computed when it is asked for.
        rate: From a step, counted from 0, to what the learning rates are multiplied by.
        progress: Whether to show a progress bar.
        after: Called after each step with the number of steps done.

    Returns:
        The loss of each step.
    """
    peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    model.train()
    found: list[float] = []
    bar = tqdm(range(steps), desc="pre-training", unit="step", disable=not progress, mininterval=5)
    for step in bar:
        loss = next(losses)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, rates in zip(optimisers, peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = peak * rate(step)
            optimiser.step()
        found.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(found[-50:]):.3f}", refresh=False)
        after(step + 1)
    model.eval()
    return found


def write_weights(path: Path, weights: Mapping[str, Tensor], recipe: Any, **metadata: str) -> None:
    """Writes tensors in float16, at once or not at all; the recipe, a dataclass, goes into the file's metadata."""
    partial = path.with_name(f"{path.name}.partial")
    halves = {name: tensor.detach().half().contiguous() for name, tensor in weights.items()}
    save_file(halves, partial, metadata=metadata | {"recipe": json.dumps(asdict(recipe))})
    partial.chmod(0o644)
    partial.replace(path)


class Watch:
    """Takes the time of one pre-training, from here to its record.

    Arguments:
        threads: How many threads torch may use. One is a good choice: the operations are small, and on a machine that
            has other work threads mostly wait for each other. The last bits of the weights depend on it.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._begin = time.perf_counter()
        self._date = datetime.datetime.now(datetime.UTC).date().isoformat()

    def record(self, model: nn.Module, losses: Sequence[float], **parts: nn.Module) -> dict[str, Any]:
        """How it went: date, hardware, seconds, parameters (also of parts) and the mean loss of the last 50 steps."""
        modules = {"parameters": model} | {f"{name}_parameters": part for name, part in parts.items()}
        return {
            "date": self._date,
            "hardware": f"{platform.machine()}, {torch.get_num_threads()} CPU thread(s), torch {torch.__version__}",
            "seconds": round(time.perf_counter() - self._begin),
            **{name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
            "loss": round(float(np.mean(losses[-50:])), 4),
        }
