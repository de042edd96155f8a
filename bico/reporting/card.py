"""The card of a model that a transfer made: what it is, how good it is, what it was made of."""

from collections.abc import Mapping
from dataclasses import dataclass

from bico.models.families import get_family
from bico.reporting.names import label_of, short_name
from bico.reporting.rows import Row


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    source: str
    target: str
    digests: Mapping[str, str]
    """sha256 of what it was made of, by name."""
    sampling: str
    completion: str
    alpha: float
    family: str
    """Of both models, by name."""


def model_card(cell: Row, before: float | None, origin: Origin) -> str:
    """Returns a model card in Markdown, with the header that model hubs read.

    Arguments:
        cell: The model's row of the results.
        before: The target's accuracy on the same task before, in percent.
    """
    name = f"{short_name(origin.target)} for {cell.task}"
    drawn = (
        "no calibration samples" if cell.seed is None else f"{cell.budget.asked} calibration samples (seed {cell.seed})"
    )
    family = get_family(origin.family)
    gain = "" if before is None else f", {cell.accuracy - before:+.2f} points over {family.baseline}"
    lines = [
        "---",
        f"library_name: {family.library}",
        "tags: [task-vector, model-transfer]",
        "---",
        "",
        f"# {name}",
        "",
    ]
    lines += [
        f"{short_name(origin.target)} with what an expert of {short_name(origin.source)} learnt on {cell.task}, carried "
        f"over by {label_of(cell.method)} with {drawn}; nothing was trained.",
        "",
        "| | |",
        "| --- | --- |",
        f"| test accuracy on {cell.task} | {cell.accuracy:.2f} %{gain} |",
        f"| sampling, completion, α | {origin.sampling}, {origin.completion}, {origin.alpha:g} |",
        *(f"| {what}, sha256 | `{digest}` |" for what, digest in origin.digests.items()),
        "",
        f"{family.weights_note}; `task-vector.safetensors`",
        "is what was added to the target. Flaws of the expert and of its data travel with it; licences of source and",
        "target apply.",
    ]
    return "\n".join(lines) + "\n"
