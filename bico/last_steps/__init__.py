"""Last steps after any method, or after none: in closed form, but for the fine-tuning that they have to beat."""

from collections.abc import Callable

from bico.last_steps.head import Head
from bico.last_steps.projection import Projection
from bico.last_steps.protocol import LastStep, Samples, StepContext, StepResult
from bico.last_steps.tune import Tune

LAST_STEPS: dict[str, Callable[..., LastStep]] = {step.name: step for step in (Projection, Head, Tune)}

__all__ = ["LAST_STEPS", "LastStep", "Samples", "StepContext", "StepResult"]
