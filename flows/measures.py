"""Which step measures a model on tasks that have no classes."""

from collections.abc import Mapping
from typing import Any

from bico.data.base import Task
from bico.evaluation import completions as of_completions
from bico.evaluation import pairs as of_pairs
from bico.models.protocol import COMPLETION, PAIRS
from tasks import completions, pairs

MEASURES: Mapping[str, Any] = {PAIRS: pairs.measure_model, COMPLETION: completions.measure_model}
"""By loss; each leaves `Measures`."""


def measure_of(loss: str, task: Task) -> str:
    """The measure that stands for a model on a task."""
    if loss == COMPLETION:
        return of_completions.measure_of(task.class_names)
    return of_pairs.measure_of(task.open("test").labels)
