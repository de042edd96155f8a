"""The thread: fine-tune, collect, solve maps, transfer, evaluate, record."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.futures import PrefectFuture
from prefect_dask import DaskTaskRunner

from bico.report import Row
from bico.signals import Signal, signal_key
from flows.config import Settings, TransferConfig
from flows.plan import Plan, make_plan
from tasks.collect import ACTIVATIONS, Calibration, collect_activations, collect_gradients
from tasks.evaluate import evaluate_model, read_accuracy
from tasks.finetune import adopt_expert, finetune_model
from tasks.procrustes import MapJob, solve_maps
from tasks.publish import record_run, write_results
from tasks.stage import Done, TaskRef, Workspace, open_model
from tasks.transfer import transfer_vector


@dataclass(frozen=True)
class Result:
    """What a transfer left behind."""

    rows: list[Row]
    outputs: dict[str, Any]
    """Files and folders written, and the ids of the runs that recorded them."""
    stages: dict[str, dict[str, int]]
    """Per stage: how many were computed and how many were cached."""

    def to_json(self) -> dict[str, Any]:
        stages = _totals(self.stages) | {"by_stage": self.stages}
        return {"rows": [asdict(row) for row in self.rows], "outputs": self.outputs, "stages": stages}


class Ledger:
    """Counts stages, and tells the log what each took."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.log = get_run_logger()

    def add(self, done: Done, what: str, started: float) -> Done:
        word = "cached" if done.cached else "computed"
        self.counts.setdefault(done.stage, Counter(computed=0, cached=0))[word] += 1
        if not done.cached:
            self.log.info("%s %s (%.1f s)", done.stage, what, time.perf_counter() - started)
        return done


@flow(name="transfer", flow_run_name="{config.source}-to-{config.target}", validate_parameters=False)
def transfer(config: TransferConfig, settings: Settings | None = None, progress: bool = False) -> Result:
    """Carries experts of the source over to the target and measures what arrived.

    Arguments:
        progress: Show progress bars on standard error.
    """
    config = TransferConfig.model_validate(config)
    settings = Settings.from_environment() if settings is None else Settings.model_validate(settings)
    plan = make_plan(config, settings)
    ledger = Ledger()
    experts, oracles = fine_tune_all(plan, ledger, progress)
    calibrations = collect_all(plan, ledger)
    jobs = solve_all(plan, settings, calibrations, ledger)
    rows, vectors = transfer_all(plan, experts, oracles, jobs, ledger)
    counts = {stage: dict(counter) for stage, counter in ledger.counts.items()}
    outputs = write_results(plan.space, config.out, plan.target, rows, _chosen(config, vectors))
    outputs["prefect"] = {"flow_run": str(runtime.flow_run.id)}
    name = f"{config.source}-to-{config.target}"
    tags = {"prefect.flow_run": outputs["prefect"]["flow_run"], **{f"stages.{k}": v for k, v in _totals(counts).items()}}
    outputs |= record_run(settings, name, _recorded(plan), rows, outputs, tags)
    return Result(rows, outputs, counts)


def fine_tune_all(plan: Plan, ledger: Ledger, progress: bool) -> tuple[dict[str, Done], dict[str, Done]]:
    """Experts of the source, and (for reference) of the target, by task."""
    experts, oracles = {}, {}
    for name, task in plan.tasks.items():
        started = time.perf_counter()
        if plan.config.expert is not None:
            done = adopt_expert(plan.space, plan.source, str(plan.config.expert))
        else:
            done = finetune_model(plan.space, plan.source, task, plan.recipes[0], progress)
        experts[name] = ledger.add(done, f"{plan.source.ref} on {name}", started)
        if plan.config.oracle:
            started = time.perf_counter()
            done = finetune_model(plan.space, plan.target, task, plan.recipes[1], progress)
            oracles[name] = ledger.add(done, f"{plan.target.ref} on {name}", started)
    return experts, oracles


Collected = dict[Signal, Done]


def collect_all(plan: Plan, ledger: Ledger) -> dict[tuple[str, int], Collected]:
    """Covariances by task and seed; nothing if no method asks for maps."""
    collected = {}
    for name, task in plan.tasks.items() if plan.calibrated else ():
        for seed in plan.config.seeds:
            started = time.perf_counter()
            calibration = Calibration(plan.source, plan.target, task, tuple(plan.config.samples), seed, plan.config.batch_size)
            activations = ledger.add(collect_activations(plan.space, calibration), f"of {name}, seed {seed}", started)
            started = time.perf_counter()
            gradients = ledger.add(collect_gradients(plan.space, calibration, activations), f"of {name}, seed {seed}", started)
            collected[name, seed] = {s: activations if s in ACTIVATIONS else gradients for s in Signal}
    return collected


@flow(name="solve-maps", validate_parameters=False)
def fan_out(space: Workspace, jobs: list[MapJob]) -> list[Done]:
    """Solves maps on Dask, one task per block and signal."""
    futures: list[PrefectFuture] = [solve_maps.submit(space, job) for job in jobs]
    # Every result is asked for: a task that kills its worker would otherwise pass unnoticed.
    return [future.result() for future in futures]


def solve_all(plan: Plan, settings: Settings, collected: dict, ledger: Ledger) -> dict[tuple[str, int], dict[Signal, list[MapJob]]]:
    """Maps by task, seed and signal. A cluster is started only if a map is missing."""
    signals = list(dict.fromkeys(s for name in plan.calibrated for s in sorted(plan.methods[name].needs)))
    sites = open_model(plan.target, plan.space.device).sites
    groups = list(dict.fromkeys(site.group for site in sites))
    jobs: dict[tuple[str, int], dict[Signal, list[MapJob]]] = {}
    for place, found in collected.items():
        jobs[place] = {
            signal: [
                MapJob(
                    found[signal].ref,
                    group,
                    signal,
                    tuple(dict.fromkeys(signal_key(site, signal)[0] for site in sites if site.group == group)),
                    tuple(plan.config.samples),
                    plan.config.completion,
                )
                for group in groups
            ]
            for signal in signals
        }
    everything = [job for per_signal in jobs.values() for block in per_signal.values() for job in block]
    missing = [job for job in everything if not plan.space.artefacts.is_complete(job.key)]
    started = time.perf_counter()
    if missing:
        for done in fan_out.with_options(task_runner=dask_runner(settings))(plan.space, missing):
            ledger.add(done, "of one block", started)
    for job in everything:
        if job not in missing:
            ledger.add(solve_maps(plan.space, job), "of one block", started)
    return jobs


def dask_runner(settings: Settings) -> DaskTaskRunner:
    if settings.dask_scheduler:
        return DaskTaskRunner(address=settings.dask_scheduler)
    # One thread per worker: linear algebra of two workers on two cores must not ask for four.
    return DaskTaskRunner(
        cluster_kwargs={"n_workers": settings.workers, "threads_per_worker": 1, "dashboard_address": None}
    )


def transfer_all(
    plan: Plan, experts: dict[str, Done], oracles: dict[str, Done], jobs: dict, ledger: Ledger
) -> tuple[list[Row], dict[tuple, Done]]:
    """Rows of the results, and the transferred task vectors by (task, method, samples, seed)."""
    config, space = plan.config, plan.space
    rows: list[Row] = []
    vectors: dict[tuple, Done] = {}

    def evaluate(files: Any, name: str, weights: Done | None, method: str, samples: int = 0, seed: int | None = None, alpha: float = 1.0) -> None:
        started = time.perf_counter()
        done = evaluate_model(space, files, plan.tasks[name], weights, alpha, config.test_limit)
        ledger.add(done, f"{method} on {name}", started)
        rows.append(Row(name, method, samples, seed, read_accuracy(done)))

    for name in plan.tasks:
        evaluate(plan.target, name, None, "zero-shot")
    for method in plan.methods:
        for samples, seed, name in _sweep(plan, method):
            started = time.perf_counter()
            needed = [job for s in sorted(plan.methods[method].needs) for job in jobs[name, seed][s]]
            done = transfer_vector(space, plan.source, plan.target, experts[name], method, needed, samples)
            vectors[name, method, samples, seed] = ledger.add(done, f"{method}, N={samples}, to {name}", started)
            evaluate(plan.target, name, done, method, samples, seed, config.alpha)
    for name, oracle in oracles.items():
        evaluate(plan.target, name, oracle, "fine-tuned")
    for name, expert in experts.items():
        evaluate(plan.source, name, expert, "expert")
    return rows, vectors


def _sweep(plan: Plan, method: str) -> Iterable[tuple[int, int | None, str]]:
    if not plan.methods[method].needs:
        return [(0, None, name) for name in plan.tasks]
    return [(n, seed, name) for n in plan.config.samples for seed in plan.config.seeds for name in plan.tasks]


def _chosen(config: TransferConfig, vectors: dict[tuple, Done]) -> dict[str, tuple[Done, float]]:
    """The models to write, by folder name: per task the first method at the largest N and first seed, all, or none."""
    chosen = {}
    for (task, method, samples, seed), done in vectors.items():
        first = method == config.methods[0] and samples in (0, config.samples[-1]) and seed in (None, config.seeds[0])
        if config.export == "all" or (config.export == "one" and first):
            drawn = "" if seed is None else f"-n{samples}-seed{seed}"
            chosen[f"{task}-{method}{drawn}"] = (done, config.alpha)
    return chosen


def _recorded(plan: Plan) -> dict[str, Any]:
    """What MLflow keeps as parameters of every run."""
    config = plan.config
    return {
        "source": config.source,
        "target": config.target,
        "source_digest": plan.source.digest()[:16],
        "target_digest": plan.target.digest()[:16],
        "completion": config.completion.value,
        "alpha": config.alpha,
        "others": "leave",
        "finetune": asdict(plan.recipes[0]),
        "test_limit": config.test_limit,
    }


def _totals(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    return {word: sum(c[word] for c in counts.values()) for word in ("computed", "cached")}
