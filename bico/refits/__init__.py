"""Last steps after any method, or after none: in closed form, but for the fine-tuning that they have to beat."""

from collections.abc import Callable

from bico.refits.head import Head
from bico.refits.projection import Projection
from bico.refits.protocol import Outcome, Refit, Samples, Scene
from bico.refits.tune import Tune

REFITS: dict[str, Callable[..., Refit]] = {refit.name: refit for refit in (Projection, Head, Tune)}

__all__ = ["REFITS", "Outcome", "Refit", "Samples", "Scene"]
