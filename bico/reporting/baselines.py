"""What a transfer has to beat, at the same data: probes, few-shot fine-tuning, and its own last steps without transport."""

from collections.abc import Iterable
from dataclasses import replace

from bico.last_steps.random import Random
from bico.methods.spec import NONE, Spec

PROBES = tuple(
    Spec.parse(f"{NONE}+{step}")
    for step in ("head:targets=labels", "head:targets=labels:fit=logistic", "head", "head:fit=logistic")
)
"""Classifiers on the target's frozen features: of the labels, and of the expert's predictions."""
FEW_SHOT = (Spec.parse("few-shot"), Spec.parse(f"{NONE}+tune:steps=30"))
"""One step, and thirty."""


def baselines(methods: Iterable[Spec]) -> list[Spec]:
    """Returns the baselines that are not among the methods already.

    Example:
        >>> [str(spec) for spec in baselines(map(Spec.parse, ["bico", "bico+projection", "none+head"]))][-3:]
        ['few-shot', 'none+tune:steps=30', 'none+projection']
    """
    methods = list(methods)
    # Of nothing, there is nothing of the same norm: the control of a random update is that of its other steps.
    plain = [replace(spec, steps=tuple(step for step in spec.steps if step.name != Random.name)) for spec in methods]
    controls = [spec.control for spec in plain if spec.control is not None]
    return [spec for spec in dict.fromkeys([*PROBES, *FEW_SHOT, *controls]) if spec not in methods]
