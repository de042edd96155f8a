"""The thread: fine-tune, collect, solve maps, transfer, evaluate, record."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import Task, flow, get_run_logger, runtime

from bico.card import Origin
from bico.layers import Layer
from bico.methods import Method
from bico.models.loading import ModelFiles
from bico.parameter_gradients import ParameterGradient
from bico.report import Row, cell_label
from bico.signals import Signal
from flows.config import Settings, TransferConfig
from flows.fan_out import solve_blocks
from flows.plan import Plan, make_plan
from storage.keys import Ref
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
from tasks.layers import judge_layers
from tasks.probe import probe_model
from tasks.procrustes import BlockMaps, SignalMaps, solve_maps
from tasks.publish import Export, write_results
from tasks.record import record_run, register
from tasks.show import show_results
from tasks.stage import Done, noted, open_model, result_of
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


@flow(name="transfer", flow_run_name="{config.source}-to-{config.target}")
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
        calibrations = collect_all(plan, ledger)
        maps = solve_all(plan, settings, calibrations, ledger)
        rows, vectors = transfer_all(plan, experts, oracles, calibrations, maps, ledger)
        layers = judge_all(plan, vectors, maps)
    counts = {stage: dict(counter) for stage, counter in ledger.counts.items()}
    drawn = [found.calibration.drawn for found in calibrations.values()]
    exports = _exports(config, rows, vectors)
    outputs = write_results(plan.space, config.out, plan.target, rows, drawn, exports, _origin(plan))
    show_results(config.source, config.target, rows, layers, counts, Path(outputs["plot"]), outputs["models"])
    outputs["prefect"] = {"flow_run": str(runtime.flow_run.id)}
    name = f"{config.source}-to-{config.target}"
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
                experts[name] = ledger.run(finetune_model, plan.space, plan.source, task, plan.recipes[0], progress)
            if plan.config.oracle:
                oracles[name] = ledger.run(finetune_model, plan.space, plan.target, task, plan.recipes[1], progress)
    return experts, oracles


@dataclass(frozen=True)
class Collected:
    """What was gathered on one task with one seed; no artefacts where no method asks for them."""

    calibration: Calibration
    covariances: dict[Signal, Done]
    gradients: dict[ParameterGradient, Ref]


def collect_all(plan: Plan, ledger: Ledger) -> dict[tuple[str, int], Collected]:
    """Covariances and parameter gradients by task and seed; only what some method asks for. Where models are probed, all
    need the samples.
    """
    collected, config = {}, plan.config
    for name, task in plan.tasks.items() if plan.maps or plan.gradients or plan.probed else ():
        with ledger.phase(f"collect on {name}"):
            far = (
                ledger.run(class_distances, plan.space, plan.target, task).ref if config.sampling.by_distance else None
            )
            for seed in config.seeds:
                draw = (tuple(config.samples), seed, config.sampling, far)
                calibration = Calibration(plan.source, plan.target, task, *draw, config.batch_size)
                covariances = collect_covariances(plan, calibration, ledger) if plan.maps else {}
                if plan.gradients:
                    ledger.run(collect_parameter_gradients, plan.space, calibration, plan.gradients)
                store = plan.space.artefacts
                gradients = {kind: store.ref(gradients_key(calibration, kind)) for kind in plan.gradients}
                collected[name, seed] = Collected(calibration, covariances, gradients)
    return collected


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
    blocks = {
        place: [
            BlockMaps(
                group,
                tuple(
                    SignalMaps.of(found.covariances[s].ref, s, sites, group, plan.config.samples, completion)
                    for s, completion in plan.maps
                ),
            )
            for group in dict.fromkeys(site.group for site in sites)
        ]
        for place, found in collected.items()
        if found.covariances
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


def transfer_all(
    plan: Plan, experts: dict[str, Done], oracles: dict[str, Done], collected: dict, blocks: dict, ledger: Ledger
) -> tuple[list[Row], dict[tuple, Done]]:
    """Rows of the results, and the transferred task vectors by (task, method, samples, seed)."""
    config, space = plan.config, plan.space
    rows: list[Row] = []
    vectors: dict[tuple, Done] = {}

    def evaluate(
        files: ModelFiles,
        name: str,
        weights: Done | None,
        method: str,
        samples: int = 0,
        seed: int | None = None,
        alpha: float = 1.0,
    ) -> None:
        label = cell_label(name, method, samples, seed)
        about = space, files, plan.tasks[name], weights, alpha
        if plan.probed:
            fitted = None if seed is None else collected[name, seed].calibration.set_of(samples)
            done = ledger.run(probe_model, *about, fitted, config.test_limit, label=label)
        else:
            done = ledger.run(evaluate_model, *about, config.test_limit, label=label)
        rows.append(Row(name, method, samples, seed, read_accuracy(done)))

    with ledger.phase("probe without transfer" if plan.probed else "evaluate zero-shot"):
        for method, files in (("target-probe", plan.target), ("source-probe", plan.source)) if plan.probed else ():
            for samples, seed, name in _everywhere(plan):
                evaluate(files, name, None, method, samples, seed)
        for name in plan.tasks if not plan.probed else ():
            evaluate(plan.target, name, None, "zero-shot")
    for method, carrier in plan.methods.items():
        with ledger.phase(f"transfer and evaluate {method}"):
            for samples, seed, name in _sweep(plan, method):
                place = (name, seed)
                evidence = _evidence(carrier, samples, collected.get(place), blocks.get(place, []))
                label = cell_label(name, method, samples, seed)
                models = plan.source, plan.target
                done = ledger.run(transfer_vector, space, *models, experts[name], carrier, evidence, label=label)
                vectors[name, method, samples, seed] = done
                evaluate(plan.target, name, done, method, samples, seed, config.alpha)
    with ledger.phase("evaluate fine-tuned models"):
        for name in plan.tasks if plan.probed and config.oracle else ():
            evaluate(plan.target, name, None, "full-data")
        for name, oracle in oracles.items():
            evaluate(plan.target, name, oracle, "fine-tuned")
        for name, expert in experts.items():
            evaluate(plan.source, name, expert, "expert")
    return rows, vectors


def _evidence(method: Method, count: int, found: Collected | None, blocks: list[BlockMaps]) -> EvidenceRefs:
    """What one method needs of what all methods' needs have left."""
    if found is None or not method.needs:
        return EvidenceRefs()
    needs = method.needs
    maps = tuple(part for block in blocks for part in block.parts if (part.signal, part.completion) in needs.maps)
    gradients = {kind: found.gradients[kind] for kind in needs.gradients}
    return EvidenceRefs(count, found.calibration.sizes[count], maps, gradients)


def _sweep(plan: Plan, method: str) -> Iterable[tuple[int, int | None, str]]:
    if not plan.methods[method].needs and not plan.probed:
        return [(0, None, name) for name in plan.tasks]
    return _everywhere(plan)


def _everywhere(plan: Plan) -> list[tuple[int, int, str]]:
    return [(n, seed, name) for n in plan.config.samples for seed in plan.config.seeds for name in plan.tasks]


def judge_all(plan: Plan, vectors: dict[tuple, Done], blocks: dict) -> list[Layer]:
    """Per task, how the first method's transfer at the largest N and first seed looks block by block."""
    layers: list[Layer] = []
    for (task, method, samples, seed), done in vectors.items():
        if _first(plan.config, method, samples, seed):
            needed = plan.methods[method].needs.maps
            maps = [p for b in blocks.get((task, seed), []) for p in b.parts if (p.signal, p.completion) in needed]
            layers += judge_layers(plan.space, plan.target, task, done, maps, samples, plan.config.alpha)
    return layers


def _first(config: TransferConfig, method: str, samples: int, seed: int | None) -> bool:
    """Whether a cell is of the first method, at the largest N, with the first seed: the one that is shown."""
    return method == config.methods[0] and samples in (0, config.samples[-1]) and seed in (None, config.seeds[0])


def _exports(config: TransferConfig, rows: list[Row], vectors: dict[tuple, Done]) -> dict[str, Export]:
    """The models to write, by folder name: per task the one that is shown, all, or none."""
    cells = {(row.task, row.method, row.samples, row.seed): row for row in rows}
    chosen = {}
    for place, done in vectors.items():
        task, method, samples, seed = place
        if config.export == "all" or (config.export == "one" and _first(config, method, samples, seed)):
            drawn = "" if seed is None else f"-n{samples}-seed{seed}"
            chosen[f"{task}-{method.replace(':', '-')}{drawn}"] = Export(done, cells[place])
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
        "loss": plan.loss,
        "measured_by": "probe" if plan.probed else "head",
        "alpha": config.alpha,
        "others": "leave",
        "finetune": asdict(plan.recipes[0]),
        "test_limit": config.test_limit,
    }
