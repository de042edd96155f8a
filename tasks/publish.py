"""Write what a person looks at: tables, a plot, and the updated models."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from bico.adapters.adapter import Adapter
from bico.adapters.card import adapter_card
from bico.methods.variant import Variant
from bico.models.loading import ModelFiles
from bico.reporting.adapter_card import hub_name, story_of
from bico.reporting.advice import advice
from bico.reporting.card import Origin, model_card
from bico.reporting.choice import Choice
from bico.reporting.measures import measures_table
from bico.reporting.page.record import RunRecord, Written
from bico.reporting.plots import plot_accuracy
from bico.reporting.references import start_of
from bico.reporting.rows import COLUMNS, Cell, Row
from bico.reporting.strengths import plot_strengths, strength_lines
from bico.reporting.tables import markdown_table
from storage.keys import Ref
from tasks.artefacts import read_curve, read_told
from tasks.cached_stage import Workspace
from tasks.export import export_adapter, export_model
from tasks.inputs import TaskRef
from tasks.page import replacing, write_page
from tasks.retries import RETRIES


@dataclass(frozen=True)
class Export:
    """A model to write."""

    vector: Ref
    """The target's task vector."""
    row: Row
    """Its row of the results."""
    task: TaskRef
    variant: Variant
    """What was done to the target."""
    alpha: float = 1.0
    """How much of the task vector is added."""
    choice: Choice | None = None
    """Why it is written, if it was chosen from several."""
    adapter: tuple[Ref, float] | None = None
    """Where an adapter is written in place of whole weights: its own, before last steps, and its strength."""


@task(name="write-results", task_run_name="write-results", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def write_results(
    space: Workspace,
    out: Path,
    target: ModelFiles,
    record: RunRecord,
    calibrations: list[dict[str, Any]],
    models: Mapping[str, Export],
    origin: Origin,
    searched: Mapping[Cell, Ref],
) -> dict[str, Any]:
    """Writes the results table (CSV, Markdown), the plot, the calibration samples, each chosen model with its task
    vector and a card, the record of the run and its page; where strengths were searched, a plot of what the searches saw.

    Arguments:
        record: Of the run; what is read from the store is added here.
        calibrations: Which samples were drawn, by task and seed (`Calibration.drawn`).
        models: By folder name.
        origin: What the models were made of, and how much of each task vector is added.
        searched: Task vectors whose strength may have been searched.

    Returns:
        What was written, by kind.
    """
    out = out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    rows = list(record.rows)
    table = markdown_table(rows)
    curves = {cell: curve for cell, ref in searched.items() if (curve := read_curve(ref))}
    found = "\n".join(["Strengths found (`strengths.png`):", *strength_lines(curves)]) if curves else ""
    with replacing(out / "results.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(row.record() for row in rows)
    with replacing(out / "results.md") as path:
        heading = [] if origin.measure == "accuracy" else [f"Test {origin.measure}, in percent."]
        parts = [*heading, table, *filter(None, [measures_table(rows)]), *advice(rows), *([found] if found else [])]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    with replacing(out / "accuracy.png") as path:
        axes = plot_accuracy(rows)
        axes.set_ylabel(f"test {origin.measure} (%)")
        axes.figure.savefig(path, dpi=150, format="png")
    if curves:
        with replacing(out / "strengths.png") as path:
            plot_strengths(curves).figure.savefig(path, dpi=150, format="png")
    with replacing(out / "calibration.json") as path:
        path.write_text(json.dumps(calibrations))
    with replacing(out / "settings.yaml") as path:
        path.write_text(record.settings, encoding="utf-8")
    record = replace(record, curves=tuple(curves.items()))
    write_page(out, record)  # before the models: a run that is killed here is known when it comes again
    told: dict[str, list[str]] = {}
    for name, export in models.items():
        before, curve = start_of(export.row, rows), read_curve(export.vector)
        folder = out / "models" / name
        if export.adapter is not None:
            told[name] = _write_adapter(space, target, export, rows, origin, record.expert, folder)
            continue
        card = partial(model_card, export.row, export.variant, before, origin, name, curve, choice=export.choice)
        export_model(space, target, export.vector, export.alpha, folder, export.task, card)
    written = {name: Written(f"models/{name}", export.row) for name, export in models.items()}
    pages = write_page(out, replace(record, models=written))
    return {
        **pages,
        "table": str(out / "results.csv"),
        "markdown": str(out / "results.md"),
        "plot": str(out / "accuracy.png"),
        "calibration": str(out / "calibration.json"),
        **({"strengths": str(out / "strengths.png")} if curves else {}),
        "models": {name: str(out / "models" / name) for name in models},
        **({"adapters": told} if told else {}),
    }


def _write_adapter(
    space: Workspace,
    target: ModelFiles,
    export: Export,
    rows: Sequence[Row],
    origin: Origin,
    expert: str | None,
    folder: Path,
) -> list[str]:
    """Writes one adapter, and returns lines on what became of it on its way."""
    assert export.adapter is not None
    carried, strength = export.adapter
    if (curve := read_curve(export.vector)) is not None:
        strength *= curve.chosen
    kept, notes = read_told(carried)
    if kept:
        least = min(kept, key=lambda module: kept[module])
        share = f"cut modules keep {100 * kept[least]:.1f} % of their energy at least ({least})."
        notes = [f"{len(kept)} {share}", *notes]

    def card(adapter: Adapter) -> str:
        story = story_of(export.row, rows, export.variant, origin, strength, expert, notes, kept)
        return adapter_card(adapter, story)

    export_adapter(space, target, carried, strength, folder, hub_name(origin.target), card)
    return notes
