"""A method and the last steps behind it, spelt `bico+projection`, `theseus+head` or, without transport, `none+head`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bico.errors import ConfigError, UnknownMethodError, nearest
from bico.evaluation.linear_head import projection_of
from bico.in_memory import gather_needs
from bico.last_steps import LAST_STEPS, LastStep, Samples, StepContext, StepResult
from bico.methods import Evidence, Method, Needs, Pair, get_method
from bico.methods.settings import parse_method
from bico.models.protocol import Model
from bico.task_vector import StateDict, scale

NONE = "none"
"""Stands for no transport in front of a last step: its control."""


@dataclass(frozen=True)
class Variant:
    """What is done to the target, in order."""

    method: Method | None
    """None: no transport."""
    steps: tuple[LastStep, ...] = ()

    @property
    def needs(self) -> Needs:
        """The evidence that method and steps ask for, together."""
        parts = [step.needs for step in self.steps] + ([self.method.needs] if self.method else [])
        return Needs(
            frozenset().union(*(part.maps for part in parts)), frozenset().union(*(part.gradients for part in parts))
        )

    @property
    def steps_need(self) -> Needs:
        """The part of it that the steps ask for."""
        return Variant(None, self.steps).needs

    @property
    def uses_samples(self) -> bool:
        return bool(self.steps or self.needs)

    @property
    def uses_unlabelled(self) -> bool:
        """Whether samples without labels make a difference."""
        return bool(self.needs) or any(not step.needs_labels for step in self.steps)

    @property
    def ends_in_head(self) -> bool:
        """Whether it leaves a classifier of its own."""
        return bool(self.steps) and self.steps[-1].name == "head"

    @property
    def needs_labels(self) -> bool:
        return any(step.needs_labels for step in self.steps)

    def check(self, source: Model, target: Model) -> None:
        """Raises MethodError unless method and steps can serve the pair."""
        if self.method is not None:
            self.method.check(Pair.of(source, target))
        for step in self.steps:
            step.check(source, target)


def get_variant(text: str, **defaults: Any) -> Variant:
    """Returns a method with its last steps by their spelling.

    Arguments:
        text: `method+step+step`, each `name` or `name:key=value`; `none` for no transport.
        defaults: Settings for those that have them and do not say themselves.

    Raises:
        UnknownMethodError: Naming the nearest valid name.
        ConfigError: Naming the nearest valid setting or value; or if a step follows a head, or nothing is done.

    Example:
        >>> [step.name for step in get_variant("bico+projection+head").steps]
        ['projection', 'head']
    """
    first, *rest = re.split(r"\+(?=[A-Za-z])", text)  # not the plus of 1e+3
    if first == NONE and not rest:
        raise ConfigError(
            "Method 'none' does nothing: put a last step behind it, such as none+projection or none+head."
        )
    method = None if first == NONE else get_method(first, **defaults)
    if strange := [name for name in (part.partition(":")[0] for part in rest) if name not in LAST_STEPS]:
        raise UnknownMethodError(
            f"Method {text!r}: unknown last step {strange[0]!r}: {nearest(strange[0], LAST_STEPS)}"
        )
    steps = tuple(parse_method(part, LAST_STEPS, defaults) for part in rest)
    if any(step.name == "head" for step in steps[:-1]):
        raise ConfigError(f"Method {text!r}: head is the end, a classifier of its own; put it last.")
    return Variant(method, steps)


def control(text: str) -> str | None:
    """Returns the same last steps without transport; None if there are none.

    Example:
        >>> control("bico:completion=svd+head:targets=labels")
        'none+head:targets=labels'
    """
    first, *rest = re.split(r"\+(?=[A-Za-z])", text)
    return "+".join([NONE, *rest]) if rest and first != NONE else None


def run(
    variant: Variant,
    tau: Mapping[str, Tensor],
    source: Model,
    target: Model,
    samples: Samples,
    heads: tuple[Tensor, Tensor],
    alpha: float = 1.0,
) -> StepResult:
    """Does in memory what the command line does in cached stages.

    Arguments:
        tau: The source's task vector.
        samples: With labels, without, or both: whatever there is serves every part that can use it.
        heads: Classification heads of source and target.
        alpha: How much of the transferred task vector is added, before the last steps.

    Raises:
        MethodError: If the variant cannot serve this pair.
        CalibrationError: If the samples are too few, reach some site not at all, or give values that are not finite.
    """
    variant.check(source, target)
    # Without a method in front, the only map that anyone asks for is the projection's.
    sites = [projection_of(target)] if variant.method is None and variant.needs else None
    evidence = gather_needs(source, target, samples.batches, heads, variant.needs, sites)
    vector: StateDict = {}
    if variant.method is not None:
        vector = scale(variant.method.transport(tau, Pair.of(source, target), evidence), alpha)
    return finish(variant.steps, vector, StepContext(source, target, heads, tau, samples), evidence)


def finish(steps: tuple[LastStep, ...], vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
    """Takes the last steps, one after the other."""
    outcome = StepResult(vector)
    for step in steps:
        outcome = step.take(outcome.vector, context, evidence)
    return outcome
