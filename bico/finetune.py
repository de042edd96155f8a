"""Fine-tuning with a frozen head: how experts are made."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from bico.errors import CalibrationError, ConfigError
from bico.task_vector import StateDict


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """The paper's protocol (BiCo, appendix E; learning rate as in Task Arithmetic)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # read from YAML, a misspelt key is an error

    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 128
    """Samples per step."""
    lr: float = 1e-5
    """Peak learning rate."""
    warmup: int = 200
    """Steps of linear warm-up; a cosine to zero follows."""
    weight_decay: float = 0.1
    """As AdamW takes it."""
    seed: int = 0
    """Order of the samples."""

    def __post_init__(self) -> None:
        counts = self.steps >= 1 and self.batch_size >= 1 and 0 <= self.warmup < self.steps and 0 <= self.seed < 2**63
        if not counts or not 0 < self.lr < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                "Fine-tuning needs steps >= 1, batch_size >= 1, 0 <= warmup < steps, lr > 0, weight_decay >= 0 and "
                f"0 <= seed < 2^63, all finite, got {self}."
            )


MINI = FinetuneConfig(steps=100, batch_size=48, lr=5e-4, warmup=10)
"""The same protocol for towers of a few million parameters, which need larger steps and fewer of them."""

ENCODER = FinetuneConfig(steps=300, batch_size=32, lr=5e-5, warmup=30)
"""The same protocol for pre-trained text encoders, at the batch and the rate that they are usually tuned with."""

DECODER = FinetuneConfig(steps=300, batch_size=16, lr=2e-5, warmup=30)
"""The same protocol for decoder language models, at the batch and the rate that all of their weights are usually tuned with."""

MINI_TOWER = 20_000_000
"""Image towers below this number of parameters are fine-tuned by `MINI` unless the user says otherwise."""


def default_config(parameters: int) -> FinetuneConfig:
    """Returns the fine-tuning protocol for an image tower of so many parameters."""
    return MINI if parameters < MINI_TOWER else FinetuneConfig()


def learning_rate(step: int, config: FinetuneConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / (config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


@runtime_checkable  # beartype checks it in the tests
class Trainable(Protocol):
    """What fine-tuning asks of a model."""

    def state(self) -> StateDict:
        """The parameters that it changes, by name; detached, not copied."""
        ...

    def trainable(self) -> Sequence[Tensor]:
        """The live ones, in this order."""
        ...

    def loss(self, inputs: Any, labels: Tensor, head: Any) -> Tensor:
        """Summed over the batch."""
        ...


def finetune(
    model: Trainable,
    batch: Callable[[Tensor], tuple[Tensor, Tensor]],
    available: int,
    head: Tensor | None,
    config: FinetuneConfig,
    on_step: Callable[[int, StateDict, float], None] = lambda step, state, loss: None,
) -> StateDict:
    """Fine-tunes what is trainable and returns its new parameters; the model itself is left as it was.

    Arguments:
        batch: Gives prepared inputs and labels for sample indices (batch,).
        available: Number of training samples.
        head: Classification head (classes, features), frozen; None where the loss takes none.
        on_step: Called after every optimiser step with the number of steps taken, the live parameters, to look at (or
            to copy), not to change, and the mean loss of the step's batch.

    Raises:
        CalibrationError: If the loss is not finite.
    """
    before = {name: tensor.clone() for name, tensor in model.state().items()}
    live = model.state()  # the live parameters, detached: they share storage
    leaves = [tensor.requires_grad_() for tensor in model.trainable()]
    # A step is smaller than what bfloat16 can tell from nothing: weights in it are stepped as float32 beside them.
    masters = [leaf if leaf.dtype.itemsize > 2 else leaf.detach().float() for leaf in leaves]
    parameters = {name: tensor.detach() for name, tensor in zip(live, masters, strict=True)}
    optimiser = torch.optim.AdamW(masters, lr=config.lr, weight_decay=config.weight_decay)
    order = endless_order(available, config.seed)
    try:
        for step in range(config.steps):
            indices = torch.stack([next(order) for _ in range(config.batch_size)])
            inputs, labels = batch(indices)
            loss = model.loss(inputs, labels, head) / len(labels)
            if not loss.isfinite():
                raise CalibrationError(
                    f"Fine-tuning diverged at step {step}: the loss is {loss.item()}; lower lr={config.lr}."
                )
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, config)
            optimiser.zero_grad()
            loss.backward()
            for leaf, master in _apart(leaves, masters):
                master.grad, leaf.grad = None if leaf.grad is None else leaf.grad.float(), None
            optimiser.step()
            for leaf, master in _apart(leaves, masters):
                leaf.detach().copy_(master)
            on_step(step + 1, parameters, loss.item())
        return {name: tensor.clone() for name, tensor in parameters.items()}
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)
            leaf.grad = None
        for name, tensor in before.items():
            live[name].copy_(tensor)


def _apart(leaves: list[Tensor], masters: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The leaves that are stepped as something else."""
    yield from ((leaf, master) for leaf, master in zip(leaves, masters, strict=True) if leaf is not master)


def drawn_rows(available: int, config: FinetuneConfig) -> set[int]:
    """The samples that fine-tuning draws, of so many.

    Example:
        >>> len(drawn_rows(100, FinetuneConfig(steps=4, batch_size=5, warmup=1)))
        20
    """
    drawn = config.steps * config.batch_size
    if drawn >= available:
        return set(range(available))
    return {int(row) for row in islice(endless_order(available, config.seed), drawn)}


def endless_order(available: int, seed: int) -> Iterator[Tensor]:
    """Sample indices, epoch after epoch, each epoch in its own seeded order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(available, generator=generator)
