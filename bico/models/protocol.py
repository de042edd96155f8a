"""What the method asks of a model, whatever its family: little for calibration, more for tasks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bico.errors import MethodError
from bico.models.permutations import PermutationGroup
from bico.models.sites import Site
from bico.task_vector import StateDict

TEXT, PROBE, PAIRS, COMPLETION = "text", "probe", "pairs", "completion"
"""Losses of a text model: of the class's words, of a linear probe fitted on pooled features, of pairs of texts without
classes by their cosine, of the tokens that complete a text."""
CLASSLESS = (PAIRS, COMPLETION)
"""Losses whose tasks are read, and measured, in a way of their own, and whose samples need no classes."""


@runtime_checkable  # beartype checks it in the tests
class Calibratable(Protocol):
    """What calibration and transport ask: where the linear maps are, and a loss to send through them. Frozen."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    @property
    def modality(self) -> str:
        """What it reads: "picture", "text", or "sample" for whatever somebody's own module reads."""
        ...

    @property
    def vocabulary(self) -> str | None:
        """Digest of what makes tokens of text: two models can be matched token by token only if theirs is the same."""
        ...

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches (down, across) of one input, to match token counts between models; None where tokens match by themselves."""
        ...

    @property
    def sites(self) -> Sequence[Site]: ...

    @property
    def permutations(self) -> Sequence[PermutationGroup]:
        """Which features can be reordered together; empty if the family has no table."""
        ...

    def state(self) -> StateDict:
        """The parameters that fine-tuning changes, by name; detached, not copied."""
        ...

    def trainable(self) -> Sequence[nn.Parameter]:
        """The live parameters behind `state()`, in its order."""
        ...

    def instrument(self) -> AbstractContextManager[Mapping[str, nn.Module]]:
        """Opens the model so that every site is a module that is really called; gives these modules by site name."""
        ...

    def mask(self, inputs: Any) -> Tensor | None:
        """Which tokens of a batch are real (batch, tokens); None if all are. What stands at the others is no data."""
        ...

    def loss(self, inputs: Any, labels: Tensor, head: Any) -> Tensor:
        """The task loss, summed over the batch.

        Arguments:
            inputs: What this model is called with, one of `bico.models.inputs.Inputs`.
            head: What the loss is taken in, None for a model that needs none.
        """
        ...


@runtime_checkable
class Model(Calibratable, Protocol):
    """A frozen pre-trained model with its own preprocessing and its own head: what tasks and evaluation ask besides."""

    @property
    def losses(self) -> Sequence[str]:
        """The losses that a task can be posed in, by name; the first unless asked otherwise."""
        ...

    @property
    def probed(self) -> bool:
        """Whether accuracy is that of a linear probe on `features`; else the head itself classifies."""
        ...

    @property
    def prefixes(self) -> tuple[str, ...]:
        """How the names of the parameters that fine-tuning changes begin: the rest of a checkpoint is not asked for."""
        ...

    @property
    def tokens(self) -> int:
        """The most rows that one sample has at a site inside the blocks."""
        ...

    def updated(self, vector: Mapping[str, Tensor], alpha: float = 1.0) -> AbstractContextManager[None]:
        """Adds a task vector for the time of the context; afterwards the weights are bit for bit as before."""
        ...

    def prepare(self, examples: Sequence[Any]) -> Tensor:
        """Preprocesses raw examples into one batch."""
        ...

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """Puts examples that were prepared one by one into one batch."""
        ...

    def head(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """The task's classification head, from class names alone: one row per class."""
        ...

    def loss(self, inputs: Tensor, labels: Tensor, head: Tensor) -> Tensor:
        """The task loss in the task's head, summed over the batch."""
        ...

    def features(self, inputs: Tensor) -> Tensor:
        """What a head or a probe reads (batch, features), before normalisation."""
        ...

    def logits(self, inputs: Tensor, head: Tensor) -> Tensor:
        """Class scores (batch, classes)."""
        ...


Watching = Callable[[Mapping[str, nn.Module]], AbstractContextManager[None]]


@runtime_checkable
class Trail(Protocol):
    """What a batch left on its way through a model that is read block by block: enough to go back over it."""

    def back(self, block: int, sites: Sequence[Site], watching: Watching) -> None:
        """Runs a block that is in memory once more, and takes the gradient through it. The last block comes first, and each
        once.

        Arguments:
            sites: Those of the block that are opened for it.
            watching: Gives what is entered around it, from the modules of these sites by name.
        """
        ...


@runtime_checkable
class Blockwise(Calibratable, Protocol):
    """A model larger than memory, of which one block at a time is there. `state()` tells shapes and dtypes alone."""

    blocks: int
    """How many: `Site.block` counts them."""
    weights: Mapping[str, Tensor]
    """What `state()` would hold, each tensor read when it is asked for."""

    loss_bytes: int
    """Bytes that the loss takes beside what is outside of blocks."""

    def here(self, block: int | None) -> AbstractContextManager[None]:
        """Brings a block into memory for the time of the context; None all that is outside of blocks."""
        ...

    def block_bytes(self, block: int | None) -> int:
        """Bytes that this takes."""
        ...

    def operations(self, inputs: Any) -> int:
        """Multiplications and additions of a forward pass of a batch with its loss."""
        ...

    def forth(self, inputs: Any, labels: Tensor, head: Any, folder: Path, gradients: bool) -> Trail:
        """Runs a batch through all blocks, leaves what they read in an empty folder, and takes the loss if there will be
        gradients.
        """
        ...


def weights_of(model: Calibratable) -> Mapping[str, Tensor]:
    """The parameters that a task vector has, by name: in memory, or read one by one."""
    return model.weights if isinstance(model, Blockwise) else model.state()


@runtime_checkable
class Placed(Protocol):
    """A model of texts that knows where in them its tokens end, so that those of two tokenizers can be matched."""

    def places(self, inputs: Any) -> Tensor:
        """The place of each token (batch, tokens), by `bico.models.places`; they never fall along a sequence."""
        ...


@runtime_checkable
class Paired(Protocol):
    """A model of texts that can take its loss in pairs of them, told from a bank of others."""

    bank_size: int
    """How many pairs make a bank."""

    def bank(self, features: Tensor, groups: Tensor) -> Tensor:
        """The head of the loss, from features (pairs, both texts' features) and which of them belong together."""
        ...


@dataclass(frozen=True)
class Answers:
    """What a model makes of the completions of a batch."""

    costs: Float[Tensor, " batch"]
    """Of each completion, the sum over its tokens of their negative log-likelihood, in nats."""
    tokens: Int[Tensor, " batch"]
    """How many these are."""
    right: Int[Tensor, " batch"]
    """How many of them are the likeliest, given all before them."""
    whole: Bool[Tensor, " batch"]
    """Whether all of them are, which is when the model would write the completion itself."""
    characters: Int[Tensor, " batch"]
    """How long the completion is."""


@runtime_checkable
class Completing(Protocol):
    """A model that completes texts."""

    def answers(self, inputs: Any) -> Answers:
        """Returns what it makes of a batch's completions."""
        ...

    def choose(self, examples: Sequence[Any], answers: Sequence[str]) -> Answers:
        """Returns what it makes of each example with each of some answers, those of one example together."""
        ...

    def is_cut(self, example: Any) -> bool:
        """Whether it reads less than the whole of an example."""
        ...


def check_pair(source: Calibratable, target: Calibratable) -> None:
    """Raises MethodError unless tokens of the two models can be matched: they read the same kind of thing, and text by
    one tokenizer, or by two that know where in the text their tokens end.
    """
    if source.modality != target.modality:
        raise MethodError(
            f"{source.name} reads {source.modality}s and {target.name} {target.modality}s: source and target must be of "
            "the same family."
        )
    placed = isinstance(source, Placed) and isinstance(target, Placed)
    if source.vocabulary != target.vocabulary and not placed:
        raise MethodError(
            f"{source.name} and {target.name} have different tokenizers, so their tokens are not the same rows: a pair of "
            "text models must share one tokenizer (vocabulary and ids), unless both are of a family that knows where in "
            "the text its tokens end."
        )
