"""`bico rehome`: an adapter of one base model in, an adapter of another out. A transfer, by the names that this asks for."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.asked import asked_for
from flows.commands.options import DataOption, Fields, JsonOption
from flows.commands.run import run_transfer

FIELDS = Fields(
    "flows.config:TransferConfig",
    only=(
        "tasks", "image_column", "label_column", "text_columns", "prompts", "class_names", "test_share", "test_seed",
        "methods", "samples", "seeds", "sampling", "alpha", "loss", "completion", "between", "rivals", "expert_farthest",
        "expert_head", "pooling", "test_limit", "batch_size", "export", "out",
    ),
    tell_defaults=False,
)  # fmt: skip
"""Those of a transfer that are asked for alike."""
USUAL: dict[str, Any] = {"samples": [64], "seeds": [0], "rivals": "none"}
"""What differs from a transfer, which is a sweep: an adapter is wanted, and not a table."""
KEPT = 0.2
"""The share of a single file that is kept for measuring, unless somebody says another."""


def rehome(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of a LoRA adapter (PEFT's), or a full fine-tune, with --rank.")
    ],
    source: Annotated[str, typer.Option("--from", help="The base model that it was made for.")],
    target: Annotated[str, typer.Option("--to", help="The base model that it is to serve.")],
    given: dict[str, Any],
    settings: dict[str, Any],
    data: DataOption = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the new adapter \\[default: that of ADAPTER].")
    ] = None,
    map_rank: Annotated[
        int | None, typer.Option(min=0, help="Directions that an alignment map keeps at most; 0 for all.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the target with it merged in, in place of an adapter.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what it would do, and what it costs.")] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Go through all stages, also if this very run was made before.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Carry a LoRA adapter to another base model, and write it in PEFT's layout.

    Prints what the target does with it, as it is, and with a plain copy, where shapes are the same; and what the source does
    with its own. 64 samples and one draw unless told; of a single file a fifth is kept for measuring.
    """
    asked = asked_for(values_of(adapter, source, target, given, data or [], rank, map_rank, merged), settings)
    if dry_run:
        from flows.commands.plan_cli import tell_plan

        tell_plan(asked, settings, as_json)
    else:
        run_transfer(asked, settings, as_json, anew)


def values_of(
    adapter: Path,
    source: str,
    target: str,
    given: dict[str, Any],
    data: list[Path],
    rank: int | None = None,
    map_rank: int | None = None,
    merged: bool = False,
) -> dict[str, Any]:
    """The transfer that is asked for, as its configuration spells it.

    Raises:
        ConfigError: If a rank is given to merged weights, or there is nothing to learn from.
    """
    from bico.errors import ConfigError

    if merged and rank is not None:
        raise ConfigError("--rank is an adapter's, and --merged writes whole weights: leave one out.")
    if not data and not given.get("tasks"):
        raise ConfigError("Nothing to align the models by: give --data FILE.jsonl, or --task of an embedded one.")
    values: dict[str, Any] = {"source": source, "target": target, "expert": adapter, "data": data}
    values["write"] = "model" if merged else "adapter"
    values |= {"adapter_rank": rank} if rank is not None else {}
    values |= {"rank": map_rank} if map_rank is not None else {}
    if data and all(one.expanduser().is_file() for one in data):
        values["test_share"] = KEPT
    return USUAL | values | given
