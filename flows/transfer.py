"""The thread: fine-tune, collect, solve maps, transfer, evaluate, record."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prefect import Task, flow, get_run_logger, runtime

from bico.calibration.parameter_gradients import ParameterGradient
from bico.calibration.signals import Signal
from bico.methods import Needs
from bico.models.loading import ModelFiles
from bico.models.sites import Site
from bico.reporting.block_report import BlockReport
from bico.reporting.card import Origin
from bico.reporting.report import Row, cell_label
from flows.config import Settings, TransferConfig
from flows.fan_out import solve_blocks
from flows.plan import Plan, make_plan
from flows.sweep import Cell, everywhere, is_first, sweep
from storage.keys import Ref
from tasks.block_report import report_blocks
from tasks.cached_stage import Done, noted, result_of
from tasks.collect import (
    ACTIVATIONS,
    GRADIENTS,
    INPUT_GRADIENTS,
    Calibration,
    collect_activations,
    collect_gradients,
    collect_input_gradients,
)
from tasks.distances import class_distances
from tasks.evaluate import evaluate_model, read_accuracy
from tasks.finetune import adopt_expert, finetune_model
from tasks.gradients import collect_parameter_gradients, gradients_key
from tasks.inputs import open_model
from tasks.last_steps import take_last_steps
from tasks.probe import probe_model
from tasks.procrustes import BlockMaps, SignalMaps, solve_maps
from tasks.pseudo_labelled import PseudoLabelled
from tasks.publish import Export, write_results
from tasks.record import record_run, register
from tasks.show import show_results
from tasks.transfer import EvidenceRefs, transfer_vector


@dataclass(frozen=True)
class Result:
    """What a transfer left behind."""

    rows: list[Row]
    outputs: dict[str, Any]
    """Files and folders written, and the ids of the runs that recorded them."""
    stages: dict[str, dict[str, int]]
    """Per stage: how many were computed and how many were cached."""

    def to_json(self) -> dict[str, Any]:
        stages = totals(self.stages) | {"by_stage": self.stages}
        return {"rows": [asdict(row) for row in self.rows], "outputs": self.outputs, "stages": stages}


class Ledger:
    """Runs stages, counts them, and tells the log what each phase took.

    Arguments:
        limit: Seconds that one stage may take.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._limit = limit
        self.counts: dict[str, Counter[str]] = {}
        self.log = get_run_logger()

    def run(self, task: Task, *args: Any, label: str | None = None) -> Done:
        """Runs a stage in this process; the label tells its run from others in Prefect."""
        options: dict[str, Any] = {"task_run_name": f"{task.name} {label}"} if label else {}
        if self._limit is not None:
            options["timeout_seconds"] = self._limit
        return self.add(result_of(task.with_options(**options) if options else task, *args))

    def add(self, done: Done) -> Done:
        self.counts.setdefault(done.stage, Counter(computed=0, cached=0))["cached" if done.cached else "computed"] += 1
        return done

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        started, before = time.perf_counter(), totals(self.counts)
        yield
        after = totals(self.counts)
        numbers = ", ".join(f"{after[word] - before[word]} {word}" for word in after)
        self.log.info("%s: %s (%.1f s)", what, numbers, time.perf_counter() - started)


def totals(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {word: sum(c[word] for c in counts.values()) for word in ("computed", "cached")}


@flow(name="transfer", flow_run_name="{config.title}")
def transfer(config: TransferConfig, settings: Settings | None = None, progress: bool = False) -> Result:
    """Carries experts of the source over to the target and measures what arrived.

    Arguments:
        progress: Show progress bars on standard error.
    """
    settings = settings or Settings.from_environment()
    plan = make_plan(config, settings)
    ledger = Ledger(settings.stage_timeout)
    with noted(plan.space, str(runtime.flow_run.id)):
        experts, oracles = fine_tune_all(plan, ledger, progress)
        calibrations = collect_all(plan, ledger, experts)
        maps = solve_all(plan, settings, calibrations, ledger)
        rows, vectors = transfer_all(plan, experts, oracles, calibrations, maps, ledger)
        layers = report_all_blocks(plan, vectors, maps)
    counts = {stage: dict(counter) for stage, counter in ledger.counts.items()}
    drawn = [made.drawn for found in calibrations.values() for made in found.calibrations if made is not None]
    exports = _exports(plan, rows, vectors)
    outputs = write_results(plan.space, config.out, plan.target, rows, drawn, exports, _origin(plan))
    show_results(config.source, config.target, rows, layers, counts, Path(outputs["plot"]), outputs["models"])
    outputs["prefect"] = {"flow_run": str(runtime.flow_run.id)}
    name = config.title
    tags = {"prefect.flow_run": outputs["prefect"]["flow_run"], **{f"stages.{k}": v for k, v in totals(counts).items()}}
    outputs |= record_run(settings, name, _recorded(plan), rows, outputs, tags)
    if config.register_as and exports:
        outputs["registered"] = register(settings, outputs["mlflow"]["run"], config.register_as)
    return Result(rows, outputs, counts)


def fine_tune_all(plan: Plan, ledger: Ledger, progress: bool) -> tuple[dict[str, Done], dict[str, Done]]:
    """Experts of the source, and (for reference) of the target, by task."""
    experts, oracles = {}, {}
    for name, task in plan.tasks.items():
        with ledger.phase(f"fine-tune on {name}"):
            if plan.config.expert is not None:
                experts[name] = ledger.run(adopt_expert, plan.space, plan.source, str(plan.config.expert))
            else:
                experts[name] = ledger.run(finetune_model, plan.space, plan.source, task, plan.finetuning[0], progress)
            if plan.config.oracle:
                oracles[name] = ledger.run(finetune_model, plan.space, plan.target, task, plan.finetuning[1], progress)
    return experts, oracles


@dataclass(frozen=True)
class Collected:
    """What was gathered on one task with one seed; no artefacts where no method asks for them."""

    calibration: Calibration | None
    """None without labels."""
    covariances: dict[Signal, Done]
    gradients: dict[ParameterGradient, Ref]
    pseudo_labelled: "Collected | None" = None
    """The same of inputs without labels, if there are some."""

    @property
    def calibrations(self) -> tuple[Calibration | None, PseudoLabelled | None]:
        """Labelled and unlabelled."""
        return self.calibration, None if self.pseudo_labelled is None else self.pseudo_labelled.calibration


def collect_all(
    plan: Plan, ledger: Ledger, experts: Mapping[str, Done] | None = None
) -> dict[tuple[str, int], Collected]:
    """Covariances and parameter gradients by task and seed; only what some method asks for. Where models are
    probed, all need the samples.

    Arguments:
        experts: By task, to stand in for labels that inputs lack; without them, those inputs are left out.
    """
    collected, config = {}, plan.config
    for name, task in plan.tasks.items() if plan.uses_samples or plan.probed else ():
        with ledger.phase(f"collect on {name}"):
            far = (
                ledger.run(class_distances, plan.space, plan.target, task).ref if config.sampling.by_distance else None
            )
            for seed in config.seeds:
                labelled = Collected(None, {}, {})
                if config.labelled:
                    draw = (tuple(config.labelled), seed, config.sampling, far)
                    calibration = Calibration(plan.source, plan.target, task, *draw, config.batch_size)
                    labelled = collect_one(plan, calibration, ledger)
                pseudo_labelled = None
                if config.unlabelled and experts is not None:
                    taken = () if labelled.calibration is None else tuple(labelled.calibration.indices)
                    unlabelled = PseudoLabelled(
                        plan.source,
                        plan.target,
                        task,
                        (config.unlabelled,),
                        seed,
                        batch_size=config.batch_size,
                        expert=experts[name].ref,
                        pseudo_labels=config.pseudo_labels,
                        taken=taken,
                        labelled_head=labelled.calibration.head_indices if taken else None,
                    )
                    pseudo_labelled = collect_one(plan, unlabelled, ledger)
                collected[name, seed] = replace(labelled, pseudo_labelled=pseudo_labelled)
    return collected


def collect_one(plan: Plan, calibration: Calibration, ledger: Ledger) -> Collected:
    covariances = collect_covariances(plan, calibration, ledger) if plan.maps else {}
    if plan.gradients:
        ledger.run(collect_parameter_gradients, plan.space, calibration, plan.gradients)
    store = plan.space.artefacts
    gradients = {kind: store.ref(gradients_key(calibration, kind)) for kind in plan.gradients}
    return Collected(calibration, covariances, gradients)


def collect_covariances(plan: Plan, calibration: Calibration, ledger: Ledger) -> dict[Signal, Done]:
    """Artefacts by signal."""
    activations = ledger.run(collect_activations, plan.space, calibration, plan.collected)
    gradients = ledger.run(collect_gradients, plan.space, calibration, activations)
    found = dict.fromkeys(ACTIVATIONS, activations) | dict.fromkeys(GRADIENTS, gradients)
    if INPUT_GRADIENTS in plan.collected:
        inputs = ledger.run(collect_input_gradients, plan.space, calibration, activations)
        found |= dict.fromkeys(INPUT_GRADIENTS, inputs)
    return found


def solve_all(
    plan: Plan, settings: Settings, collected: dict, ledger: Ledger
) -> dict[tuple[str, int], list[BlockMaps]]:
    """Maps by task and seed. A cluster is started only if a map is missing."""
    sites = open_model(plan.target, plan.space.device).sites
    groups = dict.fromkeys(site.group for site in sites)
    blocks = {
        place: [BlockMaps(group, tuple(_signal_maps(plan, found, sites, group))) for group in groups]
        for place, found in collected.items()
        if plan.maps
    }
    everything = [block for group in blocks.values() for block in group]
    missing = [block for block in everything if not block.is_complete(plan.space)]
    with ledger.phase("solve maps"):
        if missing:
            for done in solve_blocks(plan.space, missing, settings):
                ledger.add(done)
        for block in everything:
            if block not in missing:
                ledger.run(solve_maps, plan.space, block)
    return blocks


def _signal_maps(plan: Plan, found: Collected, sites: Iterable[Site], group: str) -> Iterator[SignalMaps]:
    """All maps of one block: of the labelled samples, and of those with the unlabelled ones."""
    config = plan.config
    for signal, completion in plan.maps:
        labelled = found.covariances[signal].ref if found.covariances else None
        if labelled is not None:
            yield SignalMaps.of(labelled, signal, sites, group, config.labelled, completion)
        if found.pseudo_labelled is not None:
            pseudo_labelled = (found.pseudo_labelled.covariances[signal].ref, config.unlabelled)
            yield SignalMaps.of(labelled, signal, sites, group, config.samples, completion, pseudo_labelled)


def transfer_all(
    plan: Plan, experts: dict[str, Done], oracles: dict[str, Done], collected: dict, blocks: dict, ledger: Ledger
) -> tuple[list[Row], dict[tuple, Done]]:
    """Rows of the results, and the target's task vectors after all steps by their places."""
    config, space = plan.config, plan.space
    rows: list[Row] = []
    vectors: dict[Cell, Done] = {}

    def evaluate(files: ModelFiles, place: Cell, weights: Done | None, alpha: float = 1.0) -> None:
        name, method, samples, seed, unlabelled = place
        label = cell_label(*place)
        about = space, files, plan.tasks[name], weights, alpha
        if plan.probed and not (method in plan.methods and plan.methods[method].ends_in_head):
            fitted = None if seed is None else collected[name, seed].calibration.set_of(samples)
            done = ledger.run(probe_model, *about, fitted, config.test_limit, label=label)
        else:
            done = ledger.run(evaluate_model, *about, config.test_limit, label=label)
        rows.append(Row(name, method, samples, seed, read_accuracy(done), unlabelled))

    with ledger.phase("probe without transfer" if plan.probed else "evaluate zero-shot"):
        for method, files in (("target-probe", plan.target), ("source-probe", plan.source)) if plan.probed else ():
            for place in everywhere(plan, method):
                evaluate(files, place, None)
        for name in plan.tasks if not plan.probed else ():
            evaluate(plan.target, Cell(name, "zero-shot"), None)
    for method in plan.methods:
        with ledger.phase(f"transfer and evaluate {method}"):
            for place in sweep(plan, method):
                found, solved = collected.get((place.task, place.seed)), blocks.get((place.task, place.seed), [])
                vectors[place] = transfer_one(plan, place, experts[place.task], found, solved, ledger)
                evaluate(plan.target, place, vectors[place], plan.strength(method))
    with ledger.phase("evaluate fine-tuned models"):
        for name in plan.tasks if plan.probed and config.oracle else ():
            evaluate(plan.target, Cell(name, "full-data"), None)
        for name, oracle in oracles.items():
            evaluate(plan.target, Cell(name, "fine-tuned"), oracle)
        for name, expert in experts.items():
            evaluate(plan.source, Cell(name, "expert"), expert)
    return rows, vectors


def transfer_one(
    plan: Plan, place: Cell, expert: Done, found: Collected | None, blocks: list[BlockMaps], ledger: Ledger
) -> Done:
    """The target's task vector of one cell: transported, and after the last steps, if there are some."""
    variant, models, done = plan.methods[place.method], (plan.source, plan.target), None
    label = cell_label(*place)
    if variant.method is not None:
        # The transport before last steps is that of the method alone, and found in the store if that was measured too.
        needs = variant.method.needs
        evidence = _evidence(needs, place, found, blocks) if needs else EvidenceRefs()
        done = ledger.run(transfer_vector, plan.space, *models, expert, variant.method, evidence, label=label)
    if variant.steps:
        evidence = _evidence(variant.steps_need, place, found, blocks)
        drawn = (
            found.calibration if place.samples else None,
            found.pseudo_labelled.calibration if place.unlabelled else None,
        )
        args = models, expert, done, plan.config.alpha, variant.steps, evidence, drawn
        done = ledger.run(take_last_steps, plan.space, *args, label=label)
    return done


def _evidence(needs: Needs, place: Cell, found: Collected | None, blocks: list[BlockMaps]) -> EvidenceRefs:
    """What one method needs of what all methods' needs have left."""
    if found is None or place.seed is None:
        return EvidenceRefs()
    maps = _maps_of(needs, place, blocks)
    labelled = found if place.samples else None
    sizes = labelled.calibration.sizes[place.samples] if labelled else 0
    gradients = {kind: labelled.gradients[kind] for kind in needs.gradients} if labelled else {}
    if not place.unlabelled:
        return EvidenceRefs(place.samples, sizes, maps, gradients)
    pseudo_labelled = {kind: found.pseudo_labelled.gradients[kind] for kind in needs.gradients}
    return EvidenceRefs(place.samples, sizes, maps, gradients, place.unlabelled, pseudo_labelled)


def _maps_of(needs: Needs, place: Cell, blocks: list[BlockMaps]) -> tuple[SignalMaps, ...]:
    """Those of one cell's maps that are needed: of the labelled samples, or of those with the unlabelled ones."""
    parts = [
        part for block in blocks for part in block.parts if (part.pseudo_labelled is not None) == bool(place.unlabelled)
    ]
    return tuple(part for part in parts if (part.signal, part.completion) in needs.maps)


def report_all_blocks(plan: Plan, vectors: dict[Cell, Done], blocks: dict) -> list[BlockReport]:
    """Per task, how the transfer that is shown looks block by block."""
    layers: list[BlockReport] = []
    for place, done in vectors.items():
        if is_first(plan, place):
            maps = _maps_of(plan.methods[place.method].needs, place, blocks.get((place.task, place.seed), []))
            strength = plan.strength(place.method)
            layers += report_blocks(plan.space, plan.target, place.task, done, maps, place.samples, strength)
    return layers


def _exports(plan: Plan, rows: list[Row], vectors: dict[Cell, Done]) -> dict[str, Export]:
    """The models to write, by folder name: per task the one that is shown, all, or none."""
    cells = {Cell(row.task, row.method, row.samples, row.seed, row.unlabelled): row for row in rows}
    chosen = {}
    for place, done in vectors.items():
        if plan.config.export == "all" or (plan.config.export == "one" and is_first(plan, place)):
            more = f"-u{place.unlabelled}" * bool(place.unlabelled)
            drawn = "" if place.seed is None else f"-n{place.samples}{more}-seed{place.seed}"
            name = f"{place.task}-{place.method.replace(':', '-')}{drawn}"
            chosen[name] = Export(done, cells[place], plan.strength(place.method))
    return chosen


def _origin(plan: Plan) -> Origin:
    config = plan.config
    digests = {"source": plan.source.digest(), "target": plan.target.digest()}
    drawn = config.sampling.value, config.completion.value, config.alpha
    return Origin(config.source, config.target, digests, *drawn, plan.target.family)


def _recorded(plan: Plan) -> dict[str, Any]:
    """What MLflow keeps as parameters of every run."""
    config = plan.config
    return {
        "source": config.source,
        "target": config.target,
        "source_digest": plan.source.digest()[:16],
        "target_digest": plan.target.digest()[:16],
        "sampling": config.sampling.value,
        "completion": config.completion.value,
        "unlabelled": config.unlabelled,
        "pseudo_labels": config.pseudo_labels.value,
        "loss": plan.loss,
        "measured_by": "probe" if plan.probed else "head",
        "alpha": config.alpha,
        "others": "leave",
        "finetune": asdict(plan.finetuning[0]),
        "test_limit": config.test_limit,
    }
