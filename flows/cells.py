"""Which cells a sweep has: a method, on a task, with a budget of samples, drawn with a seed."""

from collections.abc import Iterator

from bico.calibration.budget import Budget
from bico.methods.spec import Spec
from bico.reporting.rows import Cell
from flows.planning.plan import Plan


def sweep(plan: Plan, method: Spec) -> Iterator[Cell]:
    """Every cell of one method. Where there are unlabelled inputs, it is measured with the labels alone and with both."""
    if (
        not plan.methods[method].uses_samples and not plan.probed
    ):  # a probe is fitted on the samples, whatever it probes
        yield from (Cell(name, method) for name in plan.tasks)
        return
    for budget in budgets_of(plan, method):
        for seed in plan.config.seeds:
            yield from (Cell(name, method, plan.sized(name, budget), seed) for name in plan.tasks)


def everywhere(plan: Plan, method: Spec) -> list[Cell]:
    """A cell with every budget of labels."""
    return [
        Cell(name, method, plan.sized(name, Budget(asked)), seed)
        for asked in plan.config.labelled
        for seed in plan.config.seeds
        for name in plan.tasks
    ]


def budgets_of(plan: Plan, method: Spec) -> list[Budget]:
    """What one method is measured with, as asked for."""
    variant, config = plan.methods[method], plan.config
    plain = [Budget(asked) for asked in config.labelled]
    if not config.unlabelled or not variant.uses_unlabelled:
        return plain
    counts = config.labelled if variant.needs_labels else config.samples
    return plain + [Budget(asked, config.unlabelled) for asked in counts]


def is_shown(plan: Plan, cell: Cell) -> bool:
    """Whether a cell is of the first method, with all there is to learn from and the first seed: the one that is looked into
    where none was chosen.
    """
    if cell.method != plan.config.methods[0]:
        return False
    return cell.seed is None or (cell.budget, cell.seed) == (budgets_of(plan, cell.method)[-1], plan.config.seeds[0])
