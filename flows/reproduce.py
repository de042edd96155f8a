"""Run a recipe and set what comes out beside the paper's numbers."""

import csv
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow

from bico.calibration.sampling import Sampling
from bico.errors import ConfigError, nearest
from bico.methods.spec import Spec
from bico.methods.variant import carries_expert
from bico.reporting.advice import advice
from bico.reporting.baselines import baselines
from bico.reporting.names import label_of, short_name
from bico.reporting.provenance import made_by
from bico.reporting.references import TARGET_PROBE, ZERO_SHOT, is_reference
from bico.reporting.rows import Row
from bico.reporting.tables import headlines, markdown_table
from flows.config import TransferConfig
from flows.figures import FIGURES, Drawn
from flows.ledger import totals
from flows.planning.plan import make_plan
from flows.recipes import Recipe
from flows.settings import Settings
from flows.transfer import transfer
from tasks.reports import write_report


@dataclass(frozen=True)
class Reproduced:
    """What a recipe left behind."""

    recipe: str
    rows: dict[str, list[Row]]
    """By the transfer's title; none for a figure."""
    outputs: dict[str, Path]
    """Files written, by kind."""
    stages: dict[str, int]
    text: str
    """The table beside the paper's, or the figure's caption, in Markdown."""

    def to_json(self) -> dict[str, Any]:
        rows = [{"transfer": title} | row.record() for title, rows in self.rows.items() for row in rows]
        outputs = {kind: str(path) for kind, path in self.outputs.items()}
        return {"recipe": self.recipe, "rows": rows, "outputs": outputs, "stages": self.stages}


def check(recipe: Recipe, mini: bool, data: Sequence[Path], settings: Settings) -> None:
    """Makes every mistake that can be seen beforehand show before any work.

    Raises:
        BicoError: What a plan finds; ConfigError also if there is no such side or figure.
    """
    if recipe.figure is not None:
        find_figure(recipe.figure)
    for config in recipe.configs(mini, data, scratch(settings)).values():
        make_plan(config, settings)


@flow(name="reproduce", flow_run_name="{recipe.id}", validate_parameters=False)
def reproduce(
    recipe: Recipe,
    mini: bool,
    data: Sequence[Path],
    settings: Settings,
    out: Path,
    command: str,
    progress: bool = False,
) -> Reproduced:
    """Runs a recipe's transfers, each a sub-flow, and writes its table or figure.

    Arguments:
        data: Folders of tasks, or local copies of data sets: `Recipe.configs`.
        out: Folder for `ID.md` and `ID.csv` (`ID-mini` in miniature), and for the pictures of a figure.
        command: How to ask for this again; it is written into the report.
        progress: Show progress bars on standard error.
    """
    started = time.perf_counter()
    configs = recipe.configs(mini, data, scratch(settings))
    label = recipe.label(mini)
    rows: dict[str, list[Row]] = {}
    outputs: dict[str, Path] = {}
    if recipe.figure is not None:
        drawn = find_figure(recipe.figure)(configs, settings, out / label)
        outputs |= drawn.files
        stages = drawn.stages
        parts = [f"![{recipe.title}]({label}/{path.name})" for path in drawn.files.values() if path.suffix == ".png"]
    else:
        rows, stages = run_transfers(configs, settings, progress)
        parts = [section(recipe, title, configs[title], group) for title, group in rows.items()]
    about = made_by(command, time.perf_counter() - started, stages)
    text = "\n\n".join([heading(recipe, mini, configs), "\n".join(about), *missing(recipe, mini, data), *parts])
    records = [{"transfer": title} | row.record() for title, group in rows.items() for row in group]
    return Reproduced(recipe.id, rows, outputs | write_report(out, label, text, records), stages, text)


def read_transfers(
    recipe: Recipe, mini: bool, configs: Mapping[str, TransferConfig], folder: Path
) -> dict[str, list[Row]] | None:
    """Rows by transfer from the table that an earlier `reproduce` left in a folder; None if it left none.

    Raises:
        ConfigError: If the table is damaged, or was made of other transfers, tasks, budgets or seeds.
    """
    path = folder / f"{recipe.label(mini)}.csv"
    if not path.is_file():
        return None
    rows: dict[str, list[Row]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for record in csv.DictReader(stream):
                rows.setdefault(record["transfer"], []).append(Row.parse(record))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a table that `bico reproduce` wrote ({error!r}).") from error
    for title, config in configs.items():
        found = rows.get(title, [])
        beside = set(baselines(config.methods))
        for what, wanted, got in (
            ("tasks", set(config.tasks), {row.task for row in found}),
            ("methods", set(config.methods), {r.method for r in found if not is_reference(r.method)} - beside),
            ("budgets", {0, *config.samples}, {0} | {row.budget.asked for row in found}),
            ("seeds", {None, *config.seeds}, {None} | {row.seed for row in found}),
        ):
            if wanted != got:
                odd = ", ".join(sorted(map(str, wanted ^ got)))
                raise ConfigError(
                    f"{path}: {title} was made with other {what} than the recipe asks for now ({odd}): run `bico "
                    f"reproduce {recipe.id}` again, or give the same --data."
                )
    return rows


def run_transfers(
    configs: Mapping[str, TransferConfig], settings: Settings, progress: bool
) -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Rows by transfer, and how many stages were computed and cached in all of them."""
    rows, stages = {}, Counter(computed=0, cached=0)
    for title, config in configs.items():
        result = transfer(config, settings, progress)
        rows[title] = result.rows
        stages.update(totals(result.stages))
    return rows, dict(stages)


def scratch(settings: Settings) -> Path:
    """Where the transfers of recipes leave their own tables and plots."""
    return settings.home / "reproduce"


def find_figure(name: str) -> Callable[[dict[str, TransferConfig], Settings, Path], Drawn]:
    """Returns the function that makes a figure.

    Raises:
        ConfigError: If no figure has that name.
    """
    if name not in FIGURES:
        raise ConfigError(f"Unknown figure {name!r}: {nearest(name, FIGURES)}")
    return FIGURES[name]


def heading(recipe: Recipe, mini: bool, configs: Mapping[str, TransferConfig]) -> str:
    lines = [f"# {recipe.id}: {recipe.title}" + (" (miniature)" if mini else "")]
    if recipe.claim:
        lines += ["", f"The paper: {recipe.claim.strip()}"]
    if mini and recipe.note:
        lines += ["", f"Here: {recipe.note.strip()}"]
    if recipe.kind == "table":
        config = next(iter(configs.values()))
        tested = "" if config.test_limit is None else f"; at most {config.test_limit} test {recipe.shows}s per task"
        seeds = ", ".join(map(str, config.seeds))
        of_one = f"Accuracy in %, calibration seed {seeds}{tested}."
        spread = f"Accuracy in %, mean ± sd over the calibration seeds {seeds}; sd of the average over tasks{tested}."
        lines += ["", spread if len(config.seeds) > 1 else of_one]
        lines += ["N counts samples per class (K)."] * (config.sampling is Sampling.PER_CLASS)
    return "\n".join(lines)


def missing(recipe: Recipe, mini: bool, data: Sequence[Path]) -> list[str]:
    names = recipe.left_out(mini, data)
    return [f"Left out, for want of a folder (`--data`): {', '.join(names)}."] if names else []


def section(recipe: Recipe, title: str, config: TransferConfig, rows: Sequence[Row]) -> str:
    """One transfer's table with the paper's averages, on its models and tasks, in further columns."""
    parts = [f"## {models(title, config)}"]
    paper = recipe.paper_rows(title)
    base = TARGET_PROBE if recipe.shows == "text" else ZERO_SHOT
    starts = {samples: row.recomputed for (method, samples), row in paper.items() if method == base.spec}
    over = f"paper, over {base.label}"
    columns: dict[str, dict[tuple[Spec, int], str]] = {"paper": {}, over: {}} if paper else {}
    for key, row in paper.items():
        spread = "" if row.sd is None else f" ± {row.sd:.2f}"
        marks = " †" * row.misprinted + " ‡" * (row.doubt is not None)
        columns["paper"][key] = f"{row.recomputed:.2f}{spread}{marks}"
        start = starts.get(row.samples if recipe.shows == "text" else 0)
        if start is not None and row.method != base.spec:
            columns[over][key] = f"{row.recomputed - start:+.2f}"
    parts += [markdown_table(rows, columns)]
    if found := headlines(rows):
        parts += ["\n".join(found)]
    if any(row.budget.asked and not carries_expert(row.method) and not is_reference(row.method) for row in rows):
        parts += advice(rows)
    parts += [
        f"† The paper prints {row.average:.2f} for {_name(row.method, row.samples)}; this is the average of its values."
        for row in paper.values()
        if row.misprinted
    ]
    parts += [
        f"‡ {_name(row.method, row.samples)}, in the paper: {row.doubt}."
        for row in paper.values()
        if row.doubt is not None
    ]
    here = {(row.method, row.budget.asked) for row in rows}
    absent = [f"{_name(*key)} {row.recomputed:.2f}" for key, row in paper.items() if key not in here]
    if absent:
        parts += [f"In the paper only: {'; '.join(absent)}."]
    return "\n\n".join(parts)


def models(title: str, config: TransferConfig) -> str:
    """A transfer's heading: its pair, and its title where that says more."""
    pair = f"{short_name(config.source)} → {short_name(config.target)}"
    return pair if title == "pair" else f"{pair}, {title}"


def _name(method: Spec, samples: int) -> str:
    return label_of(method) + (f" at N={samples}" if samples else "")
