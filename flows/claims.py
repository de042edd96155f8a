"""Evaluate the paper's claims on the rows of recipes; stages that a table has made already are found in the store."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import flow

from bico.calibration.budget import Budget
from bico.linalg.procrustes import Completion
from bico.methods.spec import Spec
from bico.reporting.claims import Kind, Outcome, Verdict, differences, evaluate
from bico.reporting.provenance import made_by
from bico.reporting.rows import Cell, Row
from bico.task_vector import norm
from flows.catalogue import Catalogue
from flows.config import TransferConfig
from flows.ledger import totals
from flows.recipes import read_recipe
from flows.reproduce import check, missing, read_transfers, run_transfers, scratch
from flows.settings import Settings
from flows.transfer import transfer
from storage.checkpoints import load_state
from tasks.artefacts import EXPORTED_VECTOR
from tasks.reports import write_report

BICO, NAIVE = Spec.parse("bico"), Spec.parse("naive")
PLAIN = Completion.SVD
"""The paper's maps, orthogonal also where the samples do not tell how."""


@dataclass(frozen=True)
class Evaluated:
    """All outcomes, by the claim's id."""

    outcomes: dict[str, Outcome]
    outputs: dict[str, Path]
    text: str

    def counts(self) -> dict[str, int]:
        return {verdict.value: sum(o.verdict is verdict for o in self.outcomes.values()) for verdict in Verdict}

    def to_json(self) -> dict[str, Any]:
        claims = {name: asdict(outcome) | {"verdict": outcome.verdict.value} for name, outcome in self.outcomes.items()}
        outputs = {kind: str(path) for kind, path in self.outputs.items()}
        return {"claims": claims, "counts": self.counts(), "outputs": outputs}


def check_all(catalogue: Catalogue, mini: bool, data: Sequence[Path], settings: Settings) -> None:
    served, _ = catalogue.at_hand(mini, data)
    for name in served.recipes:
        check(read_recipe(name), mini, data, settings)


@flow(name="claims", flow_run_name="claims", validate_parameters=False)
def claims(
    catalogue: Catalogue,
    mini: bool,
    data: Sequence[Path],
    settings: Settings,
    out: Path,
    command: str,
    progress: bool = False,
    results: Path | None = None,
) -> Evaluated:
    """Runs the recipes that the claims name, tests each claim, and writes the verdicts.

    Arguments:
        out: Folder for `claims.md` and `claims.csv` (`claims-mini` in miniature).
        command: How to ask for this again; it is written into the report.
        results: Folder with tables that `reproduce` has written; a recipe's rows are taken from there if it has them.
    """
    started, stages = time.perf_counter(), {"computed": 0, "cached": 0}
    catalogue, without = catalogue.at_hand(mini, data)
    recipes = {name: read_recipe(name) for name in catalogue.recipes}
    rows: dict[str, dict[str, list[Row]]] = {}
    configs = {name: recipe.configs(mini, data, scratch(settings)) for name, recipe in recipes.items()}
    if results is not None:  # all before any work: one may have been made of something else
        read = {name: read_transfers(recipe, mini, configs[name], results) for name, recipe in recipes.items()}
        rows = {name: found for name, found in read.items() if found is not None}
    tables = [f"`{recipes[name].label(mini)}.csv`" for name in rows]
    for name in [name for name in recipes if name not in rows]:
        rows[name], counted = run_transfers(configs[name], settings, progress)
        stages = {word: stages[word] + counted[word] for word in stages}
    outcomes = {
        c.id: evaluate(differences(c.left.of(rows), c.right.of(rows)), c.kind, c.margin) for c in catalogue.claims
    }
    for claim in catalogue.norms:
        config = next(iter(configs[claim.recipe].values()))
        kept, counted = norms_kept(config, settings, progress)
        stages = {word: stages[word] + counted[word] for word in stages}
        found: dict[str, dict[int | None, float]] = {task: {seed: share - 100} for (task, seed), share in kept.items()}
        outcomes[claim.id] = evaluate(found, Kind.ALIKE, claim.margin)
    about = made_by(command, time.perf_counter() - started, stages)
    about += [f"Rows of earlier runs, read from {', '.join(tables)}."] if tables else []
    left_out = missing(next(iter(recipes.values())), mini, data)
    left_out += [f"Claims left out, for want of a folder (`--data`): {', '.join(without)}."] if without else []
    text = render(catalogue, outcomes, about + left_out)
    records = [{"claim": name} | asdict(o) | {"verdict": o.verdict.value} for name, o in outcomes.items()]
    written = write_report(out, "claims-mini" if mini else "claims", text, records)
    return Evaluated(outcomes, written, text)


def norms_kept(
    config: TransferConfig, settings: Settings, progress: bool
) -> tuple[dict[tuple[str, int], float], dict[str, int]]:
    """How much of the task vector's norm arrives by plain `U Vᵀ` maps, in percent by task and seed; and stage counts.

    The vector that `naive` adds is the source's own; it is compared on the parameters that BiCo moves.
    """
    seed, samples = config.seeds[0], config.samples[-1]
    changes = {
        "methods": [BICO, NAIVE],
        "samples": [samples],
        "seeds": [seed],
        "completion": PLAIN,
        "export": "all",
        "oracle": False,
        "out": config.out / "norms",
    }
    done = transfer(config.model_copy(update=changes), settings, progress)
    folders = done.outputs["models"]
    kept = {}
    for task in config.tasks:
        cells = Cell(task, BICO, Budget(samples), seed), Cell(task, NAIVE)
        moved, own = (load_state(Path(folders[cell.folder]) / EXPORTED_VECTOR) for cell in cells)
        kept[task, seed] = 100 * norm(moved) / norm({name: own[name] for name in moved})
    return kept, totals(done.stages)


def render(catalogue: Catalogue, outcomes: Mapping[str, Outcome], about: Sequence[str]) -> str:
    """The verdicts in Markdown, counted."""
    counts = Evaluated(dict(outcomes), {}, "").counts()
    seeds, tasks = max(o.seeds for o in outcomes.values()), sorted({o.tasks for o in outcomes.values()})
    lines = [
        "# The paper's claims",
        "",
        *about,
        "",
        f"**{counts['held']} of {len(outcomes)} claims held, {counts['not held']} not held, "
        f"{counts['undecided']} undecided.**",
        "",
        f"Differences in points of accuracy, left minus right, averaged over up to {seeds} seeds and tested over "
        f"{' or '.join(map(str, tasks))} tasks by one-sided paired t-tests at 5 %. Held: the claim is significant; not held: its opposite "
        "is; undecided: neither. In favour: tasks whose own difference is as claimed.",
    ]
    for claim in catalogue.all:
        if claim.group:
            lines += [
                "",
                f"## {claim.group}",
                "",
                "| claim | mean | sd over tasks | sd over seeds | in favour | p | verdict |",
            ]
            lines += ["| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
        o = outcomes[claim.id]
        numbers = [f"{o.mean:+.2f}", _number(o.sd), _number(o.seed_sd), f"{o.in_favour}/{o.tasks}", _number(o.p, 4)]
        lines.append(f"| {claim.words} | {' | '.join(numbers)} | {o.verdict.value} |")
    return "\n".join(lines)


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
