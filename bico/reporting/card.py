"""The card of a model that a transfer made: what it is, how good it is, what it was made of, what of it was trained."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bico.last_steps.curve import StrengthCurve
from bico.methods.variant import Variant
from bico.models.families import get_family
from bico.models.files import CLASSES_FILE, HEAD_FILE
from bico.reporting.choice import Choice
from bico.reporting.names import label_of, short_name
from bico.reporting.rows import Row
from bico.reporting.strengths import told


@dataclass(frozen=True)
class Origin:
    """Where a model comes from."""

    source: str
    target: str
    digests: Mapping[str, str]
    """sha256 of what it was made of, by name."""
    sampling: str
    alpha: float
    family: str
    """Of both models, by name."""
    measure: str = "accuracy"
    """What the numbers of the rows are, in percent."""


def model_card(
    cell: Row,
    variant: Variant,
    before: float | None,
    origin: Origin,
    folder: str,
    curve: StrengthCurve | None = None,
    loaded_by: str = "",
    choice: Choice | None = None,
) -> str:
    """Returns a model card in Markdown, with the header that model hubs read.

    Arguments:
        cell: The model's row of the results.
        variant: What was done to the target.
        before: The target's accuracy on the same task before, in percent.
        folder: The name of the model's folder.
        curve: How the strength of its task vector was found, if it was searched.
        loaded_by: The class of the family's library that loads it with its classifier, if there is one.
        choice: Why it was written, if it was chosen from several.
    """
    family = get_family(origin.family)
    gain = "" if before is None else f", {cell.accuracy - before:+.2f} points over {family.baseline}"
    draws = "" if cell.seed is None else " (one draw of the calibration samples)"
    by = f", by the classifier in `{HEAD_FILE}`" if variant.ends_in_head else ""
    settings = [f"{part.name}: {_spoken(asdict(part))}" for part in variant.parts if asdict(part)]
    lines = [
        "---",
        f"library_name: {family.library}",
        "tags: [task-vector, model-transfer]",
        "---",
        "",
        f"# {short_name(origin.target)} for {cell.task}",
        "",
        f"{_made(cell, variant, origin)} {_trained(variant)}",
        "",
        *([f"**{choice.sentence}**", ""] if choice and not choice.gains else []),
        "| | |",
        "| --- | --- |",
        f"| test {origin.measure} on {cell.task}{by} | {cell.accuracy:.2f} %{gain}{draws} |",
        *(
            [
                f"| chosen from {choice.candidates} by | {choice.by}: {choice.score:.2f} %, the target as it is {choice.start:.2f} % |"
            ]
            if choice
            else []
        ),
        *([f"| sampling | {origin.sampling} |"] if cell.seed is not None else []),
        *(f"| {setting.replace(': ', ' | ', 1)} |" for setting in settings),
        *(
            [f"| α of the transport | {origin.alpha if variant.alpha is None else variant.alpha:g} |"]
            if variant.method
            else []
        ),
        *([f"| searched | {told([curve])} |"] if curve else []),
        *(f"| {what}, sha256 | `{digest}` |" for what, digest in origin.digests.items()),
        "",
        *(_how_to_classify(cell.task, folder) if variant.ends_in_head else []),
        *([f"`{loaded_by}.from_pretrained` loads it too, with that classifier as its head.", ""] if loaded_by else []),
        f"{family.weights_note}; `task-vector.safetensors`",
        "is what was added to the target. Flaws of the expert and of its data travel with it; licences of source and",
        "target apply.",
    ]
    return "\n".join(lines) + "\n"


def _made(cell: Row, variant: Variant, origin: Origin) -> str:
    """Where what it knows of the task comes from."""
    target, expert = short_name(origin.target), f"an expert of {short_name(origin.source)}"
    drawn = _drawn(cell)
    if variant.carries_expert:
        return (
            f"{target} with what {expert} learnt on {cell.task}, carried over by {label_of(cell.method)} with {drawn}."
        )
    return f"{target}, made for {cell.task} by {label_of(cell.method)} with {drawn}; no weights of an expert were carried over."


def _drawn(cell: Row) -> str:
    if cell.seed is None:
        return "no calibration samples"
    given = [f"{cell.budget.size or cell.budget.asked} labelled calibration samples"] * bool(cell.budget.asked)
    given += [f"{cell.budget.unlabelled} inputs without labels"] * bool(cell.budget.unlabelled)
    return f"{' and '.join(given)} (seed {cell.seed})"


def _trained(variant: Variant) -> str:
    """What was trained or fitted on the target's side, as method and steps say it of themselves."""
    said = [part.trained for part in variant.parts if part.trained]
    if not said:
        return "Nothing of the target was trained."
    return f"Of the target, {'; then '.join(said)}. Nothing else was trained."


def _how_to_classify(task: str, folder: str) -> list[str]:
    return [
        f"The accuracy is that of the linear classifier beside the weights, `{HEAD_FILE}`: the state of a",
        "`torch.nn.Linear` on the pooled features, before the projection where the model has one. It knows the classes of",
        f"{task}, which `{CLASSES_FILE}` names in order, and no others; `bico evaluate` of this folder measures with it. To",
        "use it, from the folder above this one:",
        "",
        "```python",
        "from bico import load_classifier",
        "",
        f'classify = load_classifier("{folder}")',
        "print(classify([example]))  # the name of a class for each picture, or text",
        "```",
        "",
    ]


def _spoken(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
