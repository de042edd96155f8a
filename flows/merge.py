"""Carried experts put together on the target: one model for the tasks of all of them, measured against each alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, runtime

from bico.calibration.sampling import draw_samples
from bico.data.reading import load_words
from bico.errors import ConfigError, OutputError, at_home
from bico.methods.variant import get_variant
from bico.models.loading import ModelFiles, resolve
from bico.models.protocol import CLASSLESS, Model
from bico.reporting.merged import MergedRow, merge_card, merged_table
from bico.reporting.names import short_name
from bico.reporting.page.record import RunRecord
from bico.reporting.rows import Row
from bico.task_vector.merging import Merging
from flows.config import TransferConfig, make_config
from flows.ledger import Ledger
from flows.measures import MEASURES
from flows.planning.inputs import loss_for, pose, task_refs
from flows.planning.plan import check_writable
from flows.records.repeat import RECORD
from flows.records.results import record_of_run
from flows.settings import Settings
from storage.keys import Ref, file_digest
from tasks.artefacts import EXPORTED_VECTOR, read_accuracy
from tasks.cached_stage import Workspace, noted
from tasks.evaluate import evaluate_model
from tasks.export import export_model
from tasks.inputs import TaskRef, open_model
from tasks.merge import Samples, VectorFile, choose_strengths, merge_vectors, read_strengths
from tasks.page import replacing
from tasks.probe import probe_model
from tasks.record import record_merge

MODEL = "merged"


@dataclass(frozen=True)
class Part:
    """A carried expert among those that are put together."""

    row: Row
    """Its row in its own run."""
    alpha: float
    """The strength at which its run added it."""
    vector: VectorFile
    task: TaskRef
    samples: tuple[int, ...]
    """Training samples that calibrated it, by which strengths are chosen and probes fitted."""
    config: TransferConfig
    """Of its run."""

    @property
    def name(self) -> str:
        return self.row.folder


@dataclass(frozen=True)
class MergePlan:
    space: Workspace
    target: ModelFiles
    parts: tuple[Part, ...]
    loss: str | None
    out: Path


def plan_merge(places: Sequence[Path], out: Path, strengths: Sequence[float] | None, settings: Settings) -> MergePlan:
    """Resolves what `bico merge` is asked for.

    Arguments:
        places: Folders of runs (all their models), or of single models that runs have written.
        strengths: One for each model, in their order; None for such as their samples ask for.

    Raises:
        BicoError: The first thing that cannot work: a folder that no transfer has written, models of different targets, a
            target that has changed, models with a classifier of their own.
    """
    found = [one for place in places for one in _models_at(at_home(place))]
    if len(found) < 2:
        raise ConfigError(
            f"{len(found)} model was found: give a run that wrote several (several --expert), or more runs."
        )
    record = found[0][1]
    target = resolve(record.target, settings.allow_pickle)
    space = Workspace(settings.store, settings.resolved_device(), settings.memory, settings.allow_pickle)
    opened = open_model(target, space.device)
    parts = []
    for folder, theirs, row in found:
        if theirs.digests.get(theirs.target) != target.digest():
            raise ConfigError(
                f"{folder} was carried to {theirs.target} as it was then, which is not {record.target} as it is now: only "
                "vectors of one model can be put together."
            )
        config = make_config(load_words(theirs.settings), f"{folder}'s run")
        variant = get_variant(row.method)
        if variant.ends_in_head:
            raise ConfigError(
                f"{folder} has a classifier of its own, which knows one task: merge models without +head."
            )
        task = task_of(config, row.task, opened)
        alpha = 1.0 if variant.steps else theirs.alpha if variant.alpha is None else variant.alpha
        vector = VectorFile(str(folder / EXPORTED_VECTOR), file_digest(folder / EXPORTED_VECTOR))
        parts.append(Part(row, alpha, vector, task, _samples_of(folder, row, task), config))
    losses = {part.task.loss for part in parts}
    classless = next((loss for loss in losses if loss in CLASSLESS), None)
    if strengths is None and classless:
        raise ConfigError(f"loss={classless} has no classes to choose strengths by: say --strengths 1,1 or others.")
    if strengths is not None and len(strengths) not in (1, len(parts)):
        raise ConfigError(
            f"--strengths: {len(strengths)} for {len(parts)} models: give one for all, or one each, in the order "
            f"{', '.join(part.name for part in parts)}."
        )
    check_writable(out := at_home(out).absolute())
    if (out / MODEL).exists() and not (out / "merge.json").exists():
        raise OutputError(f"--out {out} holds a folder {MODEL} that no merge has written: give another folder.")
    return MergePlan(space, target, tuple(parts), classless, out)


def task_of(config: TransferConfig, row: str, target: Model) -> TaskRef:
    """The task that a row of a run is of, read as its run has read it: each of the run's folders serves some task."""
    loss = loss_for(config.loss, config.target)
    found = task_refs(config.tasks, config.data, config.reading, loss)
    return pose(found[config.carried[row].task], target, loss)


def _models_at(place: Path) -> list[tuple[Path, RunRecord, Row]]:
    """The models of a run, or the one at a folder, with their run's record and their rows."""
    if (place / RECORD).is_file():
        run, wanted = place, None
    elif (place / EXPORTED_VECTOR).is_file() and (place.parent.parent / RECORD).is_file():
        run, wanted = place.parent.parent, place.name
    else:
        raise ConfigError(f"{place} is neither a folder that a transfer wrote (--out) nor one of the models in it.")
    record = record_of_run(str(run), Settings())
    found = [(run / model.folder, record, model.row) for name, model in record.models.items() if wanted in (None, name)]
    if not found:
        raise ConfigError(f"{place}: its run has written no such model: run it with --export best or all.")
    if gone := [folder for folder, *_ in found if not (folder / EXPORTED_VECTOR).is_file()]:
        raise ConfigError(
            f"{gone[0]} has no {EXPORTED_VECTOR}: of adapters the whole weights are merged; run the transfer without them."
        )
    names = [row.task for _, _, row in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"{place} has several models of {twice[0]!r}: give the folders of those to merge, in models/."
        )
    return found


def _samples_of(folder: Path, row: Row, task: TaskRef) -> tuple[int, ...]:
    """The samples that calibrated a model, as its run has left them; of one that none calibrated, those its run drew first."""
    drawn = json.loads((folder.parent.parent / "calibration.json").read_text(encoding="utf-8"))
    of = [one for one in drawn if one["task"] == task.name and one["sampling"] != "unlabelled"]
    mine = [one for one in of if row.seed is None or one["seed"] == row.seed]
    if mine:
        indices: list[int] = mine[0]["indices"]
        return tuple(indices[: row.budget.size or row.budget.asked or len(indices)])
    available = task.open().sizes["train"]
    return tuple(draw_samples(available, min(available, FALLBACK), 0).tolist())


FALLBACK = 50
"""Samples where a run has drawn none, since its methods need none: as `--quick` has."""


@flow(name="merge", flow_run_name="merge into {out}", validate_parameters=False)
def merge_flow(
    places: list[Path],
    out: Path,
    how: Merging,
    density: float,
    strengths: list[float] | None,
    settings: Settings,
    limit: int | None = None,
) -> dict[str, Any]:
    """Puts carried experts together and writes the model; of each task measures the target as it is, each of its experts
    alone and the merged model.

    Arguments:
        limit: Only the first so many test samples.
    """
    plan, ledger = plan_merge(places, out, strengths, settings), Ledger(settings.stage_timeout)
    space, files = plan.space, [part.vector for part in plan.parts]

    def put(parts: Sequence[VectorFile], by: Sequence[float], join: Merging) -> Ref:
        return ledger.run(merge_vectors, space, plan.target, parts, by, join, density).ref

    def measured(part: Part, weights: Ref | None, what: str) -> float:
        about = space, plan.target, part.task, weights, 1.0
        if part.task.loss in CLASSLESS:
            done = ledger.run(MEASURES[part.task.loss], *about, limit, label=what)
        elif open_model(plan.target, space.device).probed:
            done = ledger.run(probe_model, *about, part.samples, limit, label=what)
        else:
            done = ledger.run(evaluate_model, *about, limit, label=what)
        return read_accuracy(done.ref)

    with noted(space, str(runtime.flow_run.id)):
        if strengths is None:
            judges = tuple(_judges(plan.parts).values())
            with ledger.phase("choose strengths"):
                chosen = read_strengths(
                    ledger.run(choose_strengths, space, plan.target, files, judges, how, density).ref
                )
        else:
            chosen = tuple(strengths * len(files) if len(strengths) == 1 else strengths)
        with ledger.phase("merge and evaluate"):
            whole = put(files, chosen, how)
            rows = []
            for part, strength in zip(plan.parts, chosen, strict=True):
                alone = put([part.vector], [part.alpha], Merging.SUM)
                weights = {"before": None, "alone": alone, "merged": whole}
                numbers = {what: measured(part, ref, f"{part.name}/{what}") for what, ref in weights.items()}
                rows.append(MergedRow(part.row.task, part.name, part.alpha, strength, **numbers))
    record = {
        "target": plan.parts[0].config.target,
        "target_digest": plan.target.digest(),
        "how": how.value,
        "density": density if how is Merging.TIES else None,
        "chosen": "given" if strengths is not None else "by the calibration samples",
        "vectors": {part.name: part.vector.digest for part in plan.parts},
        "rows": [row.to_json() for row in rows],
    }
    with replacing(plan.out / "merge.json") as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    with replacing(plan.out / "merge.md") as path:
        path.write_text(merged_table(rows) + "\n", encoding="utf-8")

    def card(loaded_by: str) -> str:
        return merge_card(rows, record, plan.target.family)

    export_model(space, plan.target, whole, 1.0, plan.out / MODEL, plan.parts[0].task, card)
    outputs: dict[str, Any] = {
        "model": str(plan.out / MODEL),
        "table": str(plan.out / "merge.md"),
        "record": str(plan.out / "merge.json"),
    }
    outputs["mlflow"] = record_merge(
        settings,
        f"{short_name(plan.parts[0].config.target)} merged of {len(rows)} by {how.value}",
        {name: record[name] for name in ("target", "how", "density", "chosen")}
        | {"models": ", ".join(part.name for part in plan.parts), "strengths": ", ".join(f"{s:g}" for s in chosen)},
        rows,
        [Path(outputs["table"]), Path(outputs["record"])],
        {"prefect.flow_run": str(runtime.flow_run.id)},
    )
    return {
        "rows": [row.to_json() for row in rows],
        "outputs": outputs,
        "stages": {k: dict(v) for k, v in ledger.counts.items()},
    }


def _judges(parts: Sequence[Part]) -> dict[TaskRef, Samples]:
    """Of each task, the samples that calibrated one of its experts or another."""
    rows: dict[TaskRef, dict[int, None]] = {}
    for part in parts:
        rows.setdefault(part.task, {}).update(dict.fromkeys(part.samples))
    return {task: Samples(task, tuple(found)) for task, found in rows.items()}
