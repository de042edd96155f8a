"""Which cells a sweep has: a method, on a task, with so many labels and unlabelled inputs, drawn with a seed."""

from collections.abc import Iterator
from typing import NamedTuple

from flows.plan import Plan


class Cell(NamedTuple):
    """One cell; no seed where nothing is drawn."""

    task: str
    method: str
    samples: int = 0
    seed: int | None = None
    unlabelled: int = 0


def sweep(plan: Plan, method: str) -> Iterator[Cell]:
    """Every cell of one method. Where there are unlabelled inputs, it is measured with the labels alone and with both."""
    variant, config = plan.methods[method], plan.config
    if not variant.uses_samples and not plan.probed:  # a probe is fitted on the samples, whatever it probes
        yield from (Cell(name, method) for name in plan.tasks)
        return
    for samples, unlabelled in regimes(plan, method):
        for seed in config.seeds:
            yield from (Cell(name, method, samples, seed, unlabelled) for name in plan.tasks)


def everywhere(plan: Plan, method: str) -> list[Cell]:
    """A cell at every number of labels."""
    config = plan.config
    return [Cell(name, method, n, seed) for n in config.labelled for seed in config.seeds for name in plan.tasks]


def regimes(plan: Plan, method: str) -> list[tuple[int, int]]:
    """Labels and unlabelled inputs that one method is measured with."""
    variant, config = plan.methods[method], plan.config
    plain = [(samples, 0) for samples in config.labelled]
    if not config.unlabelled or not variant.uses_unlabelled:
        return plain
    counts = config.labelled if variant.needs_labels else config.samples
    return plain + [(samples, config.unlabelled) for samples in counts]


def is_first(plan: Plan, place: Cell) -> bool:
    """Whether a cell is of the first method, with all there is to learn from and the first seed: the one that is shown."""
    if place.method != plan.config.methods[0]:
        return False
    if place.seed is None:
        return True
    return (place.samples, place.unlabelled) == regimes(plan, place.method)[-1] and place.seed == plan.config.seeds[0]
