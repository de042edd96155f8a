"""The paper's figures: gather measurements in cached stages, draw, write PNG and CSV.

    figure1   CKA and cosine of layer inputs of source and target, before and after the input map
    figure2   layer outputs against the fine-tuned target: the target as it is, and with each method's task vector
    figureA   how far layer inputs move while the source is fine-tuned
    figureB   CKA of layer inputs per layer, for pairs of any widths
    spectra   rank and spectrum of every map, and the geometry it keeps

Stages are those of a transfer, so a figure takes from a table of the same pair whatever is there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from prefect import flow, runtime

from bico.analysis import Measurement
from bico.analysis.panels import draw_figure
from bico.analysis.plots import HELD_OUT
from bico.calibration.budget import Budget
from bico.calibration.signals import Signal
from bico.errors import ConfigError
from bico.methods import Needs
from bico.reporting.names import short_name
from bico.reporting.references import ZERO_SHOT
from bico.reporting.rows import Cell
from flows.collect import calibrate
from flows.config import TransferConfig
from flows.ledger import Ledger, totals
from flows.planning.plan import Plan, check_writable, make_plan
from flows.settings import Settings
from flows.transfer import fine_tune_all, transfer_all
from tasks.analyse import (
    compare_inputs,
    compare_outputs,
    describe_maps,
    measure_drift,
    trace_finetuning,
    write_figure,
)
from tasks.artefacts import read_measurements
from tasks.cached_stage import noted

PROBES = 100
"""Test samples on which outputs and drifts are measured: some thousand rows (tokens) per layer."""
TRAJECTORY = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Points of a fine-tuning at which drift is measured, as shares of its steps."""

Gather = Callable[[Plan, Settings, Ledger], list[Measurement]]


@dataclass(frozen=True)
class Drawn:
    """A figure that was made."""

    files: dict[str, Path]
    """By kind: "png" and "csv"."""
    stages: dict[str, int]
    """How many were computed and how many were cached."""


@flow(name="figure", flow_run_name="{name}", validate_parameters=False)
def draw(name: str, transfers: dict[str, TransferConfig], settings: Settings, out: Path) -> Drawn:
    """Makes one figure.

    Arguments:
        name: One of `FIGURES`.
        transfers: The pairs to show, by title; a title other than "pair" is shown beside the names of the models.
        out: Folder for the files.

    Raises:
        ConfigError: If a transfer does not make what the figure shows.
    """
    check_writable(out)
    ledger, records = Ledger(settings.stage_timeout), []
    for number, (title, config) in enumerate(transfers.items()):
        plan = make_plan(config, settings)
        with noted(plan.space, f"{runtime.flow_run.id}-{number}"):
            found = GATHER[name](plan, settings, ledger)
        models = f"{short_name(config.source)} → {short_name(config.target)}"
        pair = models + ("" if title == "pair" else f", {title}")
        records += [replace(record, pair=pair) for record in found]
    return Drawn(write_figure(out, name, records, draw_figure(name, records)), totals(ledger.counts))


def alignment(plan: Plan, settings: Settings, ledger: Ledger) -> list[Measurement]:
    """Layer inputs of both models at the largest N: on the calibration samples, and on as many test samples."""
    rule = next((rule for signal, rule in plan.maps if signal is Signal.INPUT), None)
    if rule is None:
        raise ConfigError(
            f"No method of {', '.join(map(str, plan.methods))} aligns inputs by activations: add one, such as bico."
        )
    records: list[Measurement] = []
    inputs = Needs(maps=frozenset({(Signal.INPUT, rule)}))
    for (name, seed), found in calibrate(plan, settings, ledger).items():
        budget = plan.sized(name, Budget(plan.config.samples[-1]))
        if found.labelled is None:
            raise ConfigError("Layer inputs are compared on labelled samples, and there are none: raise --samples.")
        parts, drawn = list(found.maps(inputs, budget)), found.labelled.calibration.indices
        held_out = range(min(len(drawn), plan.tasks[name].open().sizes["test"]))
        for split, indices in (("train", drawn), ("test", held_out)):
            args = plan.space, plan.source, plan.target, plan.tasks[name], split, list(indices), parts, budget
            done = ledger.run(compare_inputs, *args, label=f"{name}/seed={seed}/{split}")
            suffix = HELD_OUT if split == "test" else ""
            records += [
                replace(r, series=r.series + suffix, task=name, seed=seed, samples=budget.asked)
                for r in read_measurements(done.ref)
            ]
    return records


def outputs(plan: Plan, settings: Settings, ledger: Ledger) -> list[Measurement]:
    """Layer outputs with each method's task vector (at the largest N) against those of the fine-tuned target."""
    config = plan.config
    if not config.oracle:
        raise ConfigError("Layer outputs are compared with those of the fine-tuned target: set oracle to true.")
    experts, oracles = fine_tune_all(plan, ledger, progress=False)
    collected = calibrate(plan, settings, ledger, experts)
    _, vectors = transfer_all(plan, experts, oracles, collected, ledger)
    candidates = {Cell(name, ZERO_SHOT.spec): None for name in plan.tasks} | vectors
    records = []
    for cell, weights in candidates.items():
        if cell.budget.asked not in (0, config.samples[-1]):
            continue
        name, strength = cell.task, plan.strength(cell.method) if weights else 1.0
        limit = min(PROBES, config.test_limit or PROBES)
        args = plan.space, plan.target, plan.tasks[name], oracles[name], weights, str(cell.method), strength, limit
        done = ledger.run(compare_outputs, *args, label=f"{name}/{cell.method}")
        records += [
            replace(r, task=name, seed=cell.seed, samples=cell.budget.asked) for r in read_measurements(done.ref)
        ]
    return records


def drift(plan: Plan, settings: Settings, ledger: Ledger) -> list[Measurement]:
    """Layer inputs of the source along its own fine-tuning, which is run once more for its checkpoints."""
    protocol, records = plan.finetuning[0], []
    steps = sorted({max(1, round(share * protocol.steps)) for share in TRAJECTORY})
    limit = min(PROBES, plan.config.test_limit or PROBES)
    for name, task in plan.tasks.items():
        with ledger.phase(f"drift on {name}"):
            path = ledger.run(trace_finetuning, plan.space, plan.source, task, protocol, steps, label=name).ref
            done = ledger.run(measure_drift, plan.space, plan.source, task, path, steps, limit, label=name)
        records += [replace(record, task=name) for record in read_measurements(done.ref)]
    return records


def spectra(plan: Plan, settings: Settings, ledger: Ledger) -> list[Measurement]:
    """Every map that the methods need, at every N; of a signal that is solved by two rules, the first."""
    if not plan.maps:
        raise ConfigError(
            f"None of {', '.join(map(str, plan.methods))} solves a map: add a method that does, such as bico."
        )
    records = []
    for (name, seed), found in calibrate(plan, settings, ledger).items():
        rules = dict(reversed(plan.maps))
        parts = [part for block in found.blocks for part in block.parts if part.rule == rules[part.signal]]
        done = ledger.run(describe_maps, plan.space, plan.target, parts, label=f"{name}/seed={seed}")
        records += [replace(record, task=name, seed=seed) for record in read_measurements(done.ref)]
    return records


GATHER: dict[str, Gather] = {
    "figure1": alignment,
    "figure2": outputs,
    "figureA": drift,
    "figureB": alignment,
    "spectra": spectra,
}

FIGURES: dict[str, Callable[[dict[str, TransferConfig], Settings, Path], Drawn]] = {
    name: partial(draw, name) for name in GATHER
}
"""Each makes one figure of some transfers."""
