"""What a transfer has to beat, at the same data: probes, few-shot fine-tuning, and its own last steps without transport."""

from collections.abc import Iterable

from bico.methods.variant import NONE, control
from bico.reporting.report import REFERENCES

PROBES = (
    f"{NONE}+head:targets=labels",
    f"{NONE}+head:targets=labels:fit=logistic",
    f"{NONE}+head",
    f"{NONE}+head:fit=logistic",
)
"""Classifiers on the target's frozen features: of the labels, and of the expert's predictions."""
FEW_SHOT = ("few-shot", f"{NONE}+tune:steps=30")
"""One step, and thirty."""


def baselines(methods: Iterable[str]) -> list[str]:
    """Returns the baselines that are not among the methods already, by their spelling.

    Example:
        >>> baselines(["bico", "bico+projection", "none+head"])[-3:]
        ['few-shot', 'none+tune:steps=30', 'none+projection']
    """
    methods = list(methods)
    controls = [found for found in map(control, methods) if found is not None]
    return [text for text in dict.fromkeys([*PROBES, *FEW_SHOT, *controls]) if text not in methods]


def transports(method: str) -> bool:
    """Whether a row's method carries the expert's weights over: no reference, no few-shot, nothing after `none`.

    Example:
        >>> [transports(m) for m in ("bico+head", "none+head", "few-shot:lr=0.1", "zero-shot")]
        [True, False, False, False]
    """
    return method.partition(":")[0].partition("+")[0] not in (NONE, "few-shot", *REFERENCES)


def keeps_vocabulary(method: str) -> bool:
    """Whether what comes out still knows other classes than the task's.

    Example:
        >>> [keeps_vocabulary(m) for m in ("bico+projection", "bico+head:targets=labels")]
        [True, False]
    """
    return method.rpartition("+")[2].partition(":")[0] != "head"
