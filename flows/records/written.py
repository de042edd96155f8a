"""What a transfer writes about itself: the models to export, their origin, and the parameters that MLflow keeps."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from bico.reporting.block_report import BlockReport
from bico.reporting.card import Origin
from bico.reporting.choice import Choice
from bico.reporting.names import short_name
from bico.reporting.page.record import Draw, RunRecord
from bico.reporting.rows import Cell, Row
from flows.ledger import Ledger
from flows.planning.experts import told
from flows.planning.plan import Plan
from flows.records.repeat import command_of, expert_digest, settings_of_run
from flows.records.versions import versions
from storage.keys import Ref
from tasks.publish import Export


def exports(
    plan: Plan,
    rows: Sequence[Row],
    vectors: Mapping[Cell, Ref],
    chosen: Mapping[str, Choice],
    adapters: Mapping[Cell, Ref],
) -> dict[str, Export]:
    """The models to write, by folder name: per task the one that was chosen, all, or none.

    Arguments:
        adapters: Where a run writes adapters, theirs before last steps; cells that have none are not written.
    """
    measured = {row.cell: row for row in rows}
    choices = {choice.cell: choice for choice in chosen.values()}
    return {
        cell.folder: Export(
            vector,
            measured[cell],
            plan.tasks[cell.task],
            plan.methods[cell.method],
            plan.strength(cell.method),
            choices.get(cell),
            (adapters[cell], plan.alpha(cell.method)) if cell in adapters else None,
        )
        for cell, vector in vectors.items()
        if (plan.config.export == "all" or cell in choices) and (cell in adapters or plan.config.write == "model")
    }


def origin(plan: Plan) -> Origin:
    config = plan.config
    digests = {"source": plan.source.digest(), "target": plan.target.digest()}
    drawn = config.sampling.value, config.alpha
    return Origin(config.source, config.target, digests, *drawn, plan.target.family, plan.measure)


def recorded(plan: Plan) -> dict[str, Any]:
    """What MLflow keeps as parameters of every run."""
    config = plan.config
    return {
        "source": config.source,
        "target": config.target,
        "source_digest": plan.source.digest()[:16],
        "target_digest": plan.target.digest()[:16],
        "tasks": ", ".join(config.tasks),
        "methods": ", ".join(map(str, config.methods)),
        "rivals": config.rivals,
        "oracle": config.oracle,
        "samples": ", ".join(map(str, config.samples)),
        "seeds": ", ".join(map(str, config.seeds)),
        **_experts(plan),
        "sampling": config.sampling.value,
        "completion": config.completion.value,
        "rank": config.rank,
        "unlabelled": config.unlabelled,
        "pseudo_labels": config.pseudo_labels.value,
        "loss": plan.loss,
        "measured_by": plan.measured_by,
        "expert_head": next((t.own_head.digest[:16] for t in plan.tasks.values() if t.own_head), None),
        "alpha": config.alpha,
        "finetune": asdict(plan.finetuning[0]),
        "finetune_target": asdict(plan.finetuning[1]),
        "test_limit": config.test_limit,
        **({"between": plan.between.value} if plan.shared_tokens else {}),
        **{f"shared_tokens.{task}": part for task, part in plan.shared_tokens.items()},
    }


def _experts(plan: Plan) -> dict[str, str | None]:
    """The experts' files and digests: by the names of their rows, where there are several."""
    found = {name: one.expert for name, one in plan.carried.items() if one.expert is not None}
    digests = {name: expert_digest(path, plan.space.allow_pickle)[:16] for name, path in found.items()}
    if len(found) < 2:
        return {
            "expert": next((path.name for path in found.values()), None),
            "expert_digest": next(iter(digests.values()), None),
        }
    return {
        "expert": told(plan.carried),
        "expert_digest": ", ".join(f"{name}={digest}" for name, digest in digests.items()),
    }


def alike(plan: Plan, task: str) -> dict[str, float]:
    """How much of a task's texts the pair's two tokenizers cut alike, if there are two."""
    return {"shared_tokens": plan.shared_tokens[task]} if task in plan.shared_tokens else {}


def settings_of(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What MLflow keeps of one cell's method: all its settings, also those that nobody gave, under the part's name; and
    the run's own settings that the method takes (`RUN_DEFAULTS`), at the value that it took.
    """
    variant = plan.methods.get(cell.method)
    if variant is None:
        return {}
    taken: dict[str, Any] = {"alpha": plan.alpha(cell.method)} if variant.method else {}
    for name in ("completion", "rank"):
        if found := {str(getattr(rule, name)) for _, rule in variant.needs.maps}:
            taken[name] = ", ".join(sorted(found))
    return taken | {f"{part.name}.{name}": value for part in variant.parts for name, value in asdict(part).items()}


def record_of(
    plan: Plan,
    rows: Sequence[Row],
    blocks: Sequence[BlockReport],
    looked_into: Mapping[str, Cell],
    drawn: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Choice],
    ledger: Ledger,
    links: Mapping[str, str],
) -> RunRecord:
    """What a run's page is made of, but for what is read from the store when it is written.

    Arguments:
        looked_into: By task, the cell that the blocks are of.
        links: Where else the run can be looked at, by name.
    """
    config = plan.config
    digests = {config.source: plan.source.digest(), config.target: plan.target.digest()}
    for place in [*config.expert_files, *([config.expert_head] if config.expert_head else [])]:
        digests[str(place)] = expert_digest(place, plan.source.allow_pickle)
    given = config.expert_files
    return RunRecord(
        config.title,
        config.source,
        config.target,
        tuple(rows),
        digests,
        plan.measure,
        plan.measured_by,
        None if not given else short_name(str(given[0])) if len(plan.carried) == 1 else told(plan.carried),
        config.alpha,
        tuple(blocks),
        {task: cell.label for task, cell in looked_into.items()},
        draws=tuple(_draw(one) for one in drawn),
        choices=tuple(chosen.values()),
        notes=plan.notes,
        command=command_of(config),
        settings=settings_of_run(config),
        stages={stage: dict(counter) for stage, counter in ledger.counts.items()},
        took={stage: round(seconds, 3) for stage, seconds in ledger.seconds.items()},
        phases=tuple(ledger.phases),
        measured={"time": told_seconds(sum(seconds for _, seconds in ledger.phases))},
        versions=versions(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {plan.space.device}, Python {platform.python_version()}",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        identity=plan.identity,
        links=links,
    )


def _draw(drawn: Mapping[str, Any]) -> Draw:
    counts = tuple(drawn["samples"])
    about = str(drawn["task"]), str(drawn["sampling"]), int(drawn["seed"]), counts, len(drawn["indices"])
    return Draw(*about, drawn.get("shared_tokens"))


def told_seconds(seconds: float) -> str:
    """A time for people.

    Example:
        >>> told_seconds(3.24), told_seconds(75), told_seconds(7260)
        ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
