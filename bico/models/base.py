"""What the method asks of a model, whatever its family."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from bico.permutations import PermutationGroup
from bico.sites import Site
from bico.task_vector import State


@runtime_checkable  # beartype checks it in the tests
class Model(Protocol):
    """A frozen pre-trained model with its own preprocessing and its own head."""

    sites: Sequence[Site]
    grid: tuple[int, int]
    """Patches (down, across) of one input, to match token counts between models."""
    permutations: Sequence[PermutationGroup]
    """Which features can be reordered together; empty if the family has no table."""

    def state(self) -> State:
        """The parameters that fine-tuning changes, by name; detached, not copied."""
        ...

    def trainable(self) -> Sequence[nn.Parameter]:
        """The live parameters behind `state()`, in its order."""
        ...

    def instrument(self) -> AbstractContextManager[Mapping[str, nn.Module]]:
        """Opens the model so that every site is a module that is really called; gives these modules by site name."""
        ...

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        """Adds a task vector for the time of the context; afterwards the weights are bit for bit as before."""
        ...

    def prepare(self, examples: Sequence[Any]) -> Tensor:
        """Preprocesses raw examples into one batch."""
        ...

    def head(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """The task's classification head (classes, features), from class names alone."""
        ...

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads (batch, features), before normalisation."""
        ...

    def logits(self, inputs: Tensor, head: Tensor) -> Tensor:
        """Class scores (batch, classes)."""
        ...

    def loss(self, inputs: Tensor, labels: Tensor, head: Tensor) -> Tensor:
        """The task loss, summed over the batch."""
        ...
