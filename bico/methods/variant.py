"""What a spec stands for: a method and the last steps behind it, with all settings, ready to run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor

from bico.errors import ConfigError, UnknownMethodError, nearest
from bico.evaluation.linear_head import projection_of
from bico.last_steps import LAST_STEPS, LastStep, Samples, StepContext, StepResult
from bico.last_steps.random import Random
from bico.last_steps.search import Search
from bico.methods import METHODS, Evidence, Method, Needs, Pair
from bico.methods.settings import build_part
from bico.methods.spec import Part, Spec
from bico.models.protocol import Model
from bico.rehoming.in_memory import gather_needs
from bico.task_vector import StateDict, scale

ALPHA = "alpha"
"""Of a spec's method: how much of its transport is added, where that is not left to the run."""


@dataclass(frozen=True)
class Variant:
    """What is done to the target, in order."""

    method: Method | None
    """None: no transport."""
    steps: tuple[LastStep, ...] = ()
    alpha: float | None = None
    """How much of the transport is added; None for as much as the run says."""

    @property
    def needs(self) -> Needs:
        """The evidence that method and steps ask for, together."""
        parts = [step.needs for step in self.steps] + ([self.method.needs] if self.method else [])
        return reduce(or_, parts, Needs())

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
        return any(not step.keeps_vocabulary for step in self.steps)

    @property
    def parts(self) -> tuple[Method | LastStep, ...]:
        """Method and steps, in order."""
        return (*((self.method,) if self.method else ()), *self.steps)

    @property
    def carries_expert(self) -> bool:
        """Whether what comes out has something of the expert in it."""
        kept = not any(isinstance(step, Random) for step in self.steps)
        return kept and self.method is not None and self.method.carries_expert

    @property
    def needs_labels(self) -> bool:
        return any(step.needs_labels for step in self.steps)

    def check(self, source: Model, target: Model) -> None:
        """Raises MethodError unless method and steps can serve the pair."""
        if self.method is not None:
            self.method.check(Pair.of(source, target))
        for step in self.steps:
            step.check(source, target)


def get_variant(text: str | Spec, **defaults: Any) -> Variant:
    """Returns the method with its last steps that a spec stands for.

    Arguments:
        text: A spec, or its spelling: `method+step+step`, each `name` or `name:key=value`; `none` for no transport.
        defaults: Settings for those that have them and do not say themselves.

    Raises:
        UnknownMethodError: Naming the nearest valid name.
        ConfigError: Naming the nearest valid setting or value; or if a step follows a head, or nothing is done.

    Example:
        >>> [step.name for step in get_variant("bico+projection+head").steps]
        ['projection', 'head']
    """
    spec = Spec.parse(text)
    if not spec.carries and not spec.steps:
        raise ConfigError(
            "Method 'none' does nothing: put a last step behind it, such as none+projection or none+head."
        )
    alpha, first = _strength_of(spec)
    method = build_part(first, METHODS, defaults) if spec.carries else None
    if strange := [part.name for part in spec.steps if part.name not in LAST_STEPS]:
        raise UnknownMethodError(
            f"Method '{spec}': unknown last step {strange[0]!r}: {nearest(strange[0], LAST_STEPS)}"
        )
    steps = tuple(build_part(part, LAST_STEPS, defaults) for part in spec.steps)
    if closed := [step.name for step in steps[:-1] if not step.keeps_vocabulary]:
        raise ConfigError(f"Method '{spec}': {closed[0]} is the end, a classifier of its own; put it last.")
    return Variant(method, steps, alpha)


def _strength_of(spec: Spec) -> tuple[float | None, Part]:
    """Takes the strength out of a spec's first part: it is no setting of the method, which gives the same vector at any.

    Raises:
        ConfigError: If it is no finite number, is given twice, or there is no transport.
    """
    said = [pair for pair in spec.first.given if pair.partition("=")[0] == ALPHA]
    if not said:
        return None, spec.first
    if len(said) > 1:
        raise ConfigError(f"Method '{spec}': {ALPHA} is given twice.")
    if spec.name not in METHODS or not METHODS[spec.name].carries_expert:
        raise ConfigError(
            f"Method '{spec}': {spec.name} carries no expert, whose strength {ALPHA} would be; leave it out."
        )
    text = said[0].partition("=")[2]
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise ConfigError(f"Method '{spec}': {ALPHA}={text!r} is not a finite number.")
    return alpha, replace(spec.first, given=tuple(pair for pair in spec.first.given if pair not in said))


def swept(spec: Spec, strengths: Sequence[float]) -> list[Spec]:
    """Returns a spec at each of several strengths; what carries no expert, or says its own, is left alone.

    Strength one is the spec as it is.

    Example:
        >>> [str(one) for one in swept(Spec.parse("bico:others=add+head"), [0.5, 1.0])]
        ['bico:others=add:alpha=0.5+head', 'bico:others=add+head']
    """
    if not carries_expert(spec) or ALPHA in spec.first.settings:
        return [spec]
    given = [(*spec.first.given, *([f"{ALPHA}={alpha:g}"] if alpha != 1 else [])) for alpha in strengths]
    return [replace(spec, first=replace(spec.first, given=one)) for one in given]


def carries_expert(spec: Spec) -> bool:
    """Whether a spec carries the expert's weights over: no reference does, nor a baseline.

    Example:
        >>> [carries_expert(Spec.parse(m)) for m in ("bico+head", "none+head", "few-shot:lr=0.1", "bico+random+search")]
        [True, False, False, False]
    """
    kept = all(part.name != Random.name for part in spec.steps)
    return kept and spec.name in METHODS and METHODS[spec.name].carries_expert


def searched(spec: Spec) -> Spec:
    """Returns a spec with a search of the strength behind its transport; what carries no expert, or has one, is left alone.

    Example:
        >>> [str(searched(Spec.parse(m))) for m in ("bico+head", "none+head", "bico+search:margin=2")]
        ['bico+search+head', 'none+head', 'bico+search:margin=2']
    """
    if not carries_expert(spec) or any(part.name == Search.name for part in spec.steps):
        return spec
    return replace(spec, steps=(Part(Search.name), *spec.steps))


def keeps_vocabulary(spec: Spec) -> bool:
    """Whether what comes out still knows other classes than the task's.

    Example:
        >>> [keeps_vocabulary(Spec.parse(m)) for m in ("bico+projection", "bico+head:targets=labels")]
        [True, False]
    """
    return all(LAST_STEPS[part.name].keeps_vocabulary for part in spec.steps)


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
        alpha: How much of the transferred task vector is added, before the last steps, unless the variant says.

    Raises:
        MethodError: If the variant cannot serve this pair.
        CalibrationError: If the samples are too few, reach some site not at all, or give values that are not finite.
    """
    variant.check(source, target)
    # Without a method in front, the only map that anyone asks for is the projection's.
    projection = projection_of(target) if variant.method is None and variant.needs else None
    sites = None if projection is None else [projection]
    evidence = gather_needs(source, target, samples.batches, heads, variant.needs, sites)
    vector: StateDict = {}
    if variant.method is not None:
        vector = scale(
            variant.method.transport(tau, Pair.of(source, target), evidence),
            alpha if variant.alpha is None else variant.alpha,
        )
    return finish(variant.steps, vector, StepContext(source, target, heads, tau, samples), evidence)


def finish(steps: tuple[LastStep, ...], vector: StateDict, context: StepContext, evidence: Evidence) -> StepResult:
    """Takes the last steps, one after the other; the curve is that of the last search among them."""
    outcome = StepResult(vector)
    for step in steps:
        taken = step.take(outcome.vector, context, evidence)
        outcome = replace(taken, curve=taken.curve or outcome.curve)
    return outcome
