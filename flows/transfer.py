"""The thread: fine-tune, collect, solve maps, transfer, evaluate, record. Order and fan-out only."""

import math
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from prefect import flow, runtime

from bico.calibration.budget import NOTHING
from bico.errors import ConfigError
from bico.evaluation.measures import told
from bico.methods import Method
from bico.methods.spec import Spec
from bico.models.loading import ModelFiles
from bico.models.protocol import CLASSLESS
from bico.reporting.block_report import BlockReport
from bico.reporting.references import (
    EXPERT,
    FINE_TUNED,
    FULL_DATA,
    SOURCE,
    SOURCE_PROBE,
    TARGET_PROBE,
    ZERO_SHOT,
    doubts,
)
from bico.reporting.rows import Cell, Row
from flows.cells import everywhere, is_shown, sweep
from flows.choice import choose_all
from flows.collect import Collected, Draw, calibrate
from flows.config import TransferConfig
from flows.ledger import Ledger
from flows.measures import MEASURES
from flows.planning.adapters import adapter_of, carried_by, is_adaptable
from flows.planning.plan import Plan
from flows.planning.ready import ready_for
from flows.records.result import Result, totals
from flows.records.spent import tell_cost
from flows.records.written import alike, exports, origin, record_of, recorded, settings_of
from flows.settings import Settings
from storage.keys import Ref
from tasks.adapters import carry_adapter
from tasks.artefacts import read_accuracy, read_measures
from tasks.block_report import report_blocks
from tasks.cached_stage import noted
from tasks.evaluate import evaluate_model
from tasks.evidence import EvidenceRefs
from tasks.finetune import adopt_expert, finetune_model, relative_change
from tasks.last_steps import take_last_steps
from tasks.probe import probe_model
from tasks.publish import write_results
from tasks.record import record_run, register
from tasks.show import show_results
from tasks.transfer import transfer_vector

__all__ = ["Result", "transfer"]


@flow(name="transfer", flow_run_name="{config.title}")
def transfer(config: TransferConfig, settings: Settings | None = None, progress: bool = False) -> Result:
    """Carries experts of the source over to the target and measures what arrived.

    Arguments:
        progress: Show progress bars on standard error.
    """
    settings, since = settings or Settings.from_environment(), time.time()
    ready = ready_for(config, settings)
    plan, ledger = ready.plan, Ledger(settings.stage_timeout)
    with noted(plan.space, str(runtime.flow_run.id)):
        experts, oracles = fine_tune_all(plan, ledger, progress)
        collected = calibrate(plan, settings, ledger, experts)
        rows, vectors = transfer_all(plan, experts, oracles, collected, ledger)
        chosen = choose_all(plan, vectors, collected, ledger)
        shown = {cell.task: cell for cell in vectors if is_shown(plan, cell)}
        shown |= {task: choice.cell for task, choice in chosen.items() if plan.methods[choice.cell.method].method}
        blocks = report_all_blocks(plan, {cell: vectors[cell] for cell in shown.values()}, collected)
    counts = {stage: dict(counter) for stage, counter in ledger.counts.items()}
    drawn = []
    for (name, _), found in collected.items():
        known = [one.drawn | alike(plan, name) for one in found.calibrations if one is not None]
        drawn += [one for one in known if one not in drawn]  # experts of one task share what was drawn for it
    written = exports(plan, rows, vectors, chosen, carried_adapters(plan, experts, collected, vectors))
    searched = {cell: vector for cell, vector in vectors.items() if plan.methods[cell.method].steps}
    record = record_of(
        plan, rows, blocks, shown, drawn, chosen, ledger, {"flow run in Prefect": str(runtime.flow_run.id)}
    )
    outputs = write_results(plan.space, config.out, plan.target, record, drawn, written, origin(plan), searched)
    record = tell_cost(ready, Path(outputs["table"]).parent, str(runtime.flow_run.id), since)
    tested = {row.cell: row.accuracy for row in rows}
    outputs["chosen"] = {task: choice.to_json() | {"test": tested[choice.cell]} for task, choice in chosen.items()}
    show_results(config.source, config.target, rows, blocks, counts, Path(outputs["plot"]), outputs["models"], record)
    if measures := {row.label: row.measures for row in rows if row.measures}:
        outputs["measures"] = measures
    outputs["prefect"] = {"flow_run": str(runtime.flow_run.id)}
    tags = {"prefect.flow_run": outputs["prefect"]["flow_run"], **{f"stages.{k}": v for k, v in totals(counts).items()}}
    details = {row.cell: settings_of(plan, row) for row in rows}
    outputs |= record_run(settings, config.title, recorded(plan), rows, details, outputs, tags)
    if config.register_as and written:
        outputs["registered"] = register(
            settings, outputs["mlflow"]["run"], config.register_as, models=outputs["models"]
        )
    return Result(rows, outputs, counts)


def fine_tune_all(plan: Plan, ledger: Ledger, progress: bool) -> tuple[dict[str, Ref], dict[str, Ref]]:
    """Experts of the source, and (for reference) of the target, by task."""
    experts, oracles = {}, {}
    ours, theirs = plan.finetuning
    for note in plan.notes:
        ledger.log.info(note)
    for name, task in plan.tasks.items():
        given = plan.carried[name].expert
        tuned = given is None or plan.config.oracle
        with ledger.phase(f"fine-tune on {name}" if tuned else f"read the expert of {name}"):
            if given is not None:
                experts[name] = ledger.run(adopt_expert, plan.space, plan.source, str(given)).ref
            else:
                experts[name] = ledger.run(finetune_model, plan.space, plan.source, task, ours, progress).ref
                size = ledger.read(partial(relative_change, plan.space, plan.source), experts[name], math.nan)
                ledger.log.info("The expert of %s: its change has %.2g times the norm of its source.", name, size)
            if plan.config.oracle:
                oracles[name] = ledger.run(finetune_model, plan.space, plan.target, task.bare, theirs, progress).ref
    return experts, oracles


def transfer_all(
    plan: Plan,
    experts: Mapping[str, Ref],
    oracles: Mapping[str, Ref],
    collected: Mapping[Draw, Collected],
    ledger: Ledger,
) -> tuple[list[Row], dict[Cell, Ref]]:
    """Rows of the results, and the target's task vectors after all steps by their cells."""
    rows: list[Row] = []
    vectors: dict[Cell, Ref] = {}

    def evaluate(files: ModelFiles, cell: Cell, weights: Ref | None, alpha: float = 1.0) -> None:
        found = None if cell.seed is None else collected[cell.task, cell.seed]
        rows.append(measure(plan, files, cell, found, weights, alpha, ledger))

    def reference(files: ModelFiles, name: str, method: Spec, weights: Ref | None = None) -> None:
        evaluate(files, Cell(name, method), weights)

    with ledger.phase("probe without transfer" if plan.probed else "evaluate zero-shot"):
        for probe, files in ((TARGET_PROBE, plan.target), (SOURCE_PROBE, plan.source)) if plan.probed else ():
            for cell in everywhere(plan, probe.spec):
                evaluate(files, cell, None)
        for name in plan.tasks if not plan.probed else ():
            reference(plan.target, name, ZERO_SHOT.spec)
    for method in plan.methods:
        with ledger.phase(f"transfer and evaluate {method}"):
            for cell in sweep(plan, method):
                found = Collected() if cell.seed is None else collected.get((cell.task, cell.seed), Collected())
                vectors[cell] = transfer_one(plan, cell, experts[cell.task], found, ledger)
                evaluate(plan.target, cell, vectors[cell], plan.strength(method))
    with ledger.phase("evaluate fine-tuned models"):
        for name in plan.tasks if plan.probed and plan.config.oracle else ():
            reference(plan.target, name, FULL_DATA.spec)
        for name, oracle in oracles.items():
            reference(plan.target, name, FINE_TUNED.spec, oracle)
        for name, expert in experts.items():
            if plan.carried[name].expert is not None:  # one that was made here is known to be of this source
                reference(plan.source, name, SOURCE.spec)
            reference(plan.source, name, EXPERT.spec, expert)
    for doubt in doubts(rows):
        ledger.log.info(doubt)
    return rows, vectors


def measure(
    plan: Plan,
    files: ModelFiles,
    cell: Cell,
    found: Collected | None,
    weights: Ref | None,
    alpha: float,
    ledger: Ledger,
) -> Row:
    """A cell with its test accuracy, or what stands for it where there are no classes: by a probe on its samples (on all, where it has none), or by a head; of an expert that
    came with a classifier, by that.
    """
    task = plan.tasks[cell.task] if cell.method == EXPERT.spec else plan.tasks[cell.task].bare
    about = plan.space, files, task, weights, alpha
    variant, measures = plan.methods.get(cell.method), {}
    if plan.loss in CLASSLESS:
        done = ledger.run(MEASURES[plan.loss], *about, plan.config.test_limit, label=cell.label)
        if (found_here := ledger.read(read_measures, done.ref, None)) is not None:
            ledger.log.info("%s: %s", cell.label, told(found_here))
            measures = found_here.all
    elif plan.probed and task.own_head is None and not (variant and variant.ends_in_head):
        samples = found.labelled.calibration.set_of(cell.budget.asked) if found and found.labelled else None
        done = ledger.run(probe_model, *about, samples, plan.config.test_limit, label=cell.label)
    else:
        done = ledger.run(evaluate_model, *about, plan.config.test_limit, label=cell.label)
    return Row.of(cell, ledger.read(read_accuracy, done.ref, math.nan), measures)


def transfer_one(plan: Plan, cell: Cell, expert: Ref, found: Collected, ledger: Ledger) -> Ref:
    """The target's task vector of one cell: transported, and after the last steps, if there are some."""
    variant, models = plan.methods[cell.method], (plan.source, plan.target)
    vector: Ref | None = None
    if variant.method is not None:
        # The transport before last steps is that of the method alone, and found in the store if that was measured too.
        evidence = evidence_for(variant.method, cell, found)
        if plan.config.write == "adapter":
            args = carried_by(plan, cell.task, expert, variant, evidence)
            vector = ledger.run(carry_adapter, plan.space, *args, label=cell.label).ref
        else:
            vector = ledger.run(
                transfer_vector, plan.space, *models, expert, variant.method, evidence, label=cell.label
            ).ref
    if variant.steps:
        evidence = found.evidence(variant.steps_need, cell.budget)
        drawn = found.known_to(cell)
        args = models, expert, vector, plan.alpha(cell.method), variant.steps, evidence, drawn
        vector = ledger.run(take_last_steps, plan.space, *args, label=cell.label).ref
    if vector is None:
        raise ConfigError(f"Method '{cell.method}' does nothing: it has neither a transport nor a last step.")
    return vector


def evidence_for(method: Method, cell: Cell, found: Collected) -> EvidenceRefs:
    """What the transport of one cell looks at."""
    return found.evidence(method.needs, cell.budget if method.needs else NOTHING)


def carried_adapters(
    plan: Plan, experts: Mapping[str, Ref], collected: Mapping[Draw, Collected], cells: Iterable[Cell]
) -> dict[Cell, Ref]:
    """Where the adapters of cells lie, of a run that writes some."""
    refs = {}
    for cell in cells if plan.config.write == "adapter" else ():
        variant = plan.methods[cell.method]
        if is_adaptable(variant) and variant.method is not None:
            found = Collected() if cell.seed is None else collected.get((cell.task, cell.seed), Collected())
            evidence = evidence_for(variant.method, cell, found)
            refs[cell] = adapter_of(plan, cell.task, experts[cell.task], variant, evidence)
    return refs


def report_all_blocks(
    plan: Plan, vectors: Mapping[Cell, Ref], collected: Mapping[Draw, Collected]
) -> list[BlockReport]:
    """How transfers look block by block."""
    blocks: list[BlockReport] = []
    for cell, vector in vectors.items():
        found = Collected() if cell.seed is None else collected.get((cell.task, cell.seed), Collected())
        evidence = found.evidence(plan.methods[cell.method].needs, cell.budget)
        models, strength = (plan.source, plan.target), plan.strength(cell.method)
        blocks += report_blocks(plan.space, models, cell.task, vector, evidence, strength)
    return blocks
