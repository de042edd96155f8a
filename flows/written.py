"""What a transfer writes about itself: the models to export, their origin, and the parameters that MLflow keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bico.models.checkpoints import read_checkpoint
from bico.reporting.card import Origin
from bico.reporting.rows import Cell, Row
from flows.cells import is_shown
from flows.plan import Plan
from storage.checkpoints import digest_of
from storage.keys import Ref
from tasks.publish import Export


def exports(plan: Plan, rows: Sequence[Row], vectors: Mapping[Cell, Ref]) -> dict[str, Export]:
    """The models to write, by folder name: per task the one that is shown, all, or none."""
    measured = {row.cell: row for row in rows}
    return {
        cell.folder: Export(
            vector, measured[cell], plan.tasks[cell.task], plan.methods[cell.method], plan.strength(cell.method)
        )
        for cell, vector in vectors.items()
        if plan.config.export == "all" or (plan.config.export == "one" and is_shown(plan, cell))
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
        "expert": None if config.expert is None else config.expert.name,
        "expert_digest": None if config.expert is None else _digest(config.expert, plan.space.allow_pickle),
        "sampling": config.sampling.value,
        "completion": config.completion.value,
        "unlabelled": config.unlabelled,
        "pseudo_labels": config.pseudo_labels.value,
        "loss": plan.loss,
        "measured_by": plan.measured_by,
        "expert_head": next((t.own_head.digest[:16] for t in plan.tasks.values() if t.own_head), None),
        "alpha": config.alpha,
        "finetune": asdict(plan.finetuning[0]),
        "finetune_target": asdict(plan.finetuning[1]),
        "test_limit": config.test_limit,
        **{f"shared_tokens.{task}": part for task, part in plan.shared_tokens.items()},
    }


def _digest(expert: Path, allow_pickle: bool) -> str:
    """Of what an expert's checkpoint holds, wherever it lies and whatever it is called."""
    return digest_of(read_checkpoint(expert, allow_pickle).tensors)[:16]


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
    taken: dict[str, Any] = {"alpha": plan.config.alpha} if variant.method else {}
    if completions := {str(completion) for _, completion in variant.needs.maps}:
        taken["completion"] = ", ".join(sorted(completions))
    return taken | {f"{part.name}.{name}": value for part in variant.parts for name, value in asdict(part).items()}
