"""Choose the model to write, task by task: by training samples that no calibration looked at."""

import math
from collections.abc import Mapping

from bico.evaluation.held_out import hold_out
from bico.finetune import drawn_rows
from bico.models.protocol import CLASSLESS
from bico.reporting.choice import Choice, Judged, choose
from bico.reporting.rows import Cell
from flows.collect import Collected, Draw
from flows.ledger import Ledger
from flows.planning.adapters import is_adaptable
from flows.planning.plan import Plan
from storage.keys import Ref
from tasks.artefacts import read_accuracy
from tasks.validate import validate_model


def choose_all(
    plan: Plan, vectors: Mapping[Cell, Ref], collected: Mapping[Draw, Collected], ledger: Ledger
) -> dict[str, Choice]:
    """The best cell of each task; nothing unless the run writes the best."""
    if plan.config.export != "best":
        return {}
    with ledger.phase("choose the model to write"):
        chosen = {name: _choose(plan, name, vectors, collected, ledger) for name in plan.tasks}
    for choice in chosen.values():
        (ledger.log.info if choice.gains else ledger.log.warning)(choice.sentence)
    return chosen


def _choose(
    plan: Plan, name: str, vectors: Mapping[Cell, Ref], collected: Mapping[Draw, Collected], ledger: Ledger
) -> Choice:
    task = plan.tasks[name].bare
    drawn = [found.calibrations for (of, _), found in collected.items() if of == name]
    taken = {row for pair in drawn for one in pair if one is not None for row in one.indices}
    held = hold_out(task.open().sizes["train"], taken, fitted=_fitted(plan, name))

    def score(cell: Cell, vector: Ref | None, alpha: float = 1.0) -> float:
        probe = _probe(plan, cell, collected) if vector is None or not plan.methods[cell.method].ends_in_head else None
        about = plan.space, plan.target, task, vector, alpha, held, probe
        label = cell.label if vector else f"{name}/as it is"
        return ledger.read(read_accuracy, ledger.run(validate_model, *about, label=label).ref, math.nan)

    cells = [cell for cell in vectors if cell.task == name]
    if plan.config.write == "adapter":  # rivals are measured, and are no adapters
        cells = [cell for cell in cells if is_adaptable(plan.methods[cell.method])]
    if not held.unseen:  # a classifier of its own was fitted on these very labels
        cells = [cell for cell in cells if not plan.methods[cell.method].ends_in_head] or cells
    starts: dict[tuple[int, ...] | None, float] = {}
    judged = []
    for cell in cells:
        if (probe := _probe(plan, cell, collected)) not in starts:
            starts[probe] = score(cell, None)
        judged.append(Judged(cell, score(cell, vectors[cell], plan.strength(cell.method)), starts[probe]))
    return choose(judged, held.told(plan.loss in CLASSLESS))


def _fitted(plan: Plan, name: str) -> set[int]:
    """The rows that the run fine-tunes an expert on; none of one that is given, of which nobody knows."""
    if plan.carried[name].expert is not None:
        return set()
    return drawn_rows(plan.tasks[name].open().sizes["train"], plan.finetuning[0])


def _probe(plan: Plan, cell: Cell, collected: Mapping[Draw, Collected]) -> tuple[int, ...] | None:
    """The samples of a cell's probe; None where heads measure."""
    if not plan.probed or plan.loss in CLASSLESS or cell.seed is None:
        return None
    labelled = collected[cell.task, cell.seed].labelled
    return tuple(labelled.calibration.set_of(cell.budget.asked)) if labelled else None
