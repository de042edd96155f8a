"""Last steps after any method, or after none: in closed form, but for the fine-tuning that they have to beat."""

from bico.last_steps.head import Head
from bico.last_steps.lora import Lora
from bico.last_steps.projection import Projection
from bico.last_steps.protocol import LastStep, Samples, StepContext, StepResult
from bico.last_steps.random import Random
from bico.last_steps.search import Search
from bico.last_steps.tune import Tune

_STEPS: tuple[type[LastStep], ...] = (Random, Search, Projection, Head, Tune, Lora)
LAST_STEPS = {step.name: step for step in _STEPS}

__all__ = ["LAST_STEPS", "LastStep", "Samples", "StepContext", "StepResult"]
