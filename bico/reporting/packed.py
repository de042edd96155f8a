"""The card of a model that was made with a calibration from elsewhere."""

from bico.calibration.pack import Pack
from bico.models.families import get_family
from bico.reporting.names import label_of, short_name
from bico.reporting.rows import Cell


def packed_card(cell: Cell, pack: Pack, alpha: float, family_name: str, measured: tuple[float, ...] | None) -> str:
    """A model card in Markdown, with the header that model hubs read.

    Arguments:
        measured: Percent of the test split, of the target as it is and of the model; None without data.
    """
    family, target = get_family(family_name), short_name(pack.target.name)
    number = "not measured: the data were not there"
    if measured is not None:
        number = f"{measured[1]:.2f} %, the target as it is {measured[0]:.2f} %"
    lines = [
        "---",
        f"library_name: {family.library}",
        "tags: [task-vector, model-transfer]",
        "---",
        "",
        f"# {target} for {cell.task}",
        "",
        f"{target} with what an expert of {short_name(pack.source.name)} learnt on {cell.task}, carried over by "
        f"{label_of(cell.method)} with a packed calibration ({cell.budget}, seed {cell.seed}). Nothing of the target was trained.",
        "",
        "| | |",
        "| --- | --- |",
        f"| test accuracy on {cell.task} | {number} |",
        f"| α of the transport | {alpha:g} |",
        f"| source, sha256 | `{pack.source.digest}` |",
        f"| target, sha256 | `{pack.target.digest}` |",
        "",
        f"{family.weights_note}; `task-vector.safetensors`",
        "is what was added to the target. Flaws of the expert and of its data travel with it; licences of source and",
        "target apply.",
    ]
    return "\n".join(lines) + "\n"
