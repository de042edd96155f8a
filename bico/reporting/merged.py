"""What came of putting carried experts together: a table, and the card of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bico.models.families import get_family
from bico.reporting.names import short_name


@dataclass(frozen=True)
class MergedRow:
    """One expert among those that were merged, measured on its task, in percent of the test split."""

    task: str
    model: str
    """The folder of the model that carries it alone."""
    alpha: float
    """Its strength alone."""
    strength: float
    """Its strength in the merged model."""
    before: float
    """Of the target as it is."""
    alone: float
    merged: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def merged_table(rows: Sequence[MergedRow]) -> str:
    """A table in Markdown, with means.

    Example:
        >>> print(merged_table([MergedRow("digits", "digits-bico", 1.0, 0.5, 10.0, 80.0, 75.0)]))
        | task | strength | target | alone | merged |
        | --- | ---: | ---: | ---: | ---: |
        | digits | 0.5 | 10.0 | 80.0 | 75.0 |
        | mean | | 10.0 | 80.0 | 75.0 |
    """
    numbers = [(row.before, row.alone, row.merged) for row in rows]
    lines = ["| task | strength | target | alone | merged |", "| --- | ---: | ---: | ---: | ---: |"]
    for row, found in zip(rows, numbers, strict=True):
        lines.append(f"| {row.task} | {row.strength:g} | " + " | ".join(f"{one:.1f}" for one in found) + " |")
    means = [sum(column) / len(rows) for column in zip(*numbers, strict=True)]
    return "\n".join([*lines, "| mean | | " + " | ".join(f"{one:.1f}" for one in means) + " |"])


def merge_card(rows: Sequence[MergedRow], record: Mapping[str, Any], family_name: str) -> str:
    """A model card in Markdown, with the header that model hubs read.

    Arguments:
        record: Of the merge, as `merge.json` has it.
    """
    family, density = get_family(family_name), record["density"]
    how = "task arithmetic" if record["how"] == "sum" else f"TIES (density {density:g})"
    lines = [
        "---",
        f"library_name: {family.library}",
        "tags: [task-vector, model-transfer, merge]",
        "---",
        "",
        f"# {short_name(record['target'])} for {', '.join(dict.fromkeys(row.task for row in rows))}",
        "",
        f"{short_name(record['target'])} with {len(rows)} carried experts put together by {how}, at strengths "
        f"{'chosen ' if record['chosen'] != 'given' else ''}{record['chosen']}. Nothing of it was trained.",
        "",
        merged_table(rows),
        "",
        "| | |",
        "| --- | --- |",
        f"| {record['target']}, sha256 | `{record['target_digest']}` |",
        *(f"| vector of {name}, sha256 | `{digest}` |" for name, digest in record["vectors"].items()),
        "",
        f"{family.weights_note}; `task-vector.safetensors`",
        "is what was added to the target. Flaws of the experts and of their data travel with them; licences of source and",
        "target apply.",
    ]
    return "\n".join(lines) + "\n"
