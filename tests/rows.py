"""Rows of results, written as tables show them."""

from bico.calibration.budget import Budget
from bico.methods.spec import Spec
from bico.reporting.rows import Row


def row(task: str, method: str, samples: int, seed: int | None, accuracy: float, unlabelled: int = 0) -> Row:
    return Row(task, Spec.parse(method), Budget(samples, unlabelled), seed, accuracy=accuracy)


spec = Spec.parse
