"""Which rivals of a transfer are measured, and what a run leaves out that it could have measured."""

from dataclasses import replace

from bico.last_steps.head import Fit, Head
from bico.last_steps.lora import Lora
from bico.last_steps.tune import Tune
from bico.methods.spec import NONE, Part, Spec
from bico.methods.variant import get_variant
from bico.reporting.baselines import baselines
from flows.config import TransferConfig


def rivals(config: TransferConfig) -> list[Spec]:
    """The rivals that a transfer asks for, besides its methods.

    Cheap are those in closed form: a forward pass over the samples and a ridge regression, where a transfer takes passes
    forward and backward of both models, and maps. Logistic heads, and whatever trains the target, are not.
    """
    everything = [*baselines(config.methods), *_retrained(config)]
    if config.rivals == "all":
        return everything
    return [spec for spec in everything if is_cheap(spec)] if config.rivals == "cheap" else []


def _retrained(config: TransferConfig) -> list[Spec]:
    """Of a run that writes adapters: one trained on the same samples, from nothing, and from what the first method carries."""
    if config.write != "adapter":
        return []
    specs = [Spec.parse(f"{NONE}+{Lora.name}"), replace(config.methods[0], steps=(Part(Lora.name),))]
    return [spec for spec in specs if spec not in config.methods]


def is_cheap(spec: Spec) -> bool:
    steps = get_variant(spec).steps
    trained = any(
        isinstance(step, Tune | Lora) or (isinstance(step, Head) and Fit(step.fit) is Fit.LOGISTIC) for step in steps
    )
    return spec.name == NONE and bool(steps) and not trained


def left_out(config: TransferConfig) -> str:
    """What could have been measured and is not, with the option that asks for it; empty if it is nothing."""
    parts = [] if config.oracle else ["fine-tuning the target (--oracle)"]
    if missing := len(baselines(config.methods)) + len(_retrained(config)) - len(rivals(config)):
        parts.append(f"{missing} {'rival' if missing == 1 else 'rivals'} of the transfer (--rivals all)")
    if config.test_limit is not None:
        parts.append(f"test samples after the first {config.test_limit} (--test-limit)")
    return f"Left out: {', '.join(parts)}." if parts else ""
