"""`bico transfer` and what asks as it does: `demo`, `plan` and `calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.asked import asked_for
from flows.commands.options import Fields, JsonOption
from flows.commands.run import run_transfer

CALIBRATES = Fields(
    "flows.config:TransferConfig",
    only=(
        "source", "target", "tasks", "data", "image_column", "label_column", "text_columns", "prompts", "class_names",
        "test_share", "test_seed", "methods", "samples", "sampling", "seeds", "loss", "completion", "rank", "between",
        "pooling", "batch_size",
    ),
)  # fmt: skip
"""What of a transfer a calibration depends on."""
ConfigOption = Annotated[Path | None, typer.Option("--config", help="YAML file; options given here win over it.")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="BiCo with 50 samples and one draw, on 1000 test samples, and no rivals.")
]
FullOption = Annotated[bool, typer.Option("--full", help="With all rivals, and the target fine-tuned for reference.")]


def demo(
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option(help="Where results go.")] = Path("out/demo"),
    as_json: JsonOption = False,
) -> None:
    """Transfer experts of zoo:mini-a to zoo:mini-b on the embedded tasks: the thread from end to end."""
    from flows.config import CONFIGS, read_config

    run_transfer(read_config(CONFIGS / "demo.yaml", {"out": out}), settings, as_json)


def transfer(
    given: dict[str, Any],
    settings: dict[str, Any],
    config: ConfigOption = None,
    quick: QuickOption = False,
    full: FullOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what it would do, as `bico plan` does.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Go through all stages, also if this very run was made before.")
    ] = False,
    pack: Annotated[
        Path | None, typer.Option(help="Carry with what `bico calibrate --pack` left there, without the data.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Carry experts of SOURCE over to TARGET and measure what arrived."""
    if pack is not None:
        from flows.commands.pack_cli import transfer_packed

        transfer_packed(
            pack, given, settings, {"config": config, "quick": quick, "full": full, "dry-run": dry_run}, as_json
        )
        return
    asked = asked_for(given, settings, config, quick, full)
    if dry_run:
        from flows.commands.plan_cli import tell_plan

        tell_plan(asked, settings, as_json)
    else:
        run_transfer(asked, settings, as_json, anew)


def plan(
    given: dict[str, Any],
    settings: dict[str, Any],
    config: ConfigOption = None,
    quick: QuickOption = False,
    full: FullOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what `bico transfer` would do: stages to compute and found, time, memory, disk, and what is refused."""
    from flows.commands.plan_cli import tell_plan

    tell_plan(asked_for(given, settings, config, quick, full), settings, as_json)


def calibrate(
    given: dict[str, Any],
    settings: dict[str, Any],
    pack: Annotated[Path, typer.Option(help="Folder for the pack.")],
    config: ConfigOption = None,
    small_pack: Annotated[
        bool, typer.Option("--small-pack", help="Also with so few samples that a pack may expose them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Calibrate a pair and leave what maps need, and nothing of the data, to carry experts with elsewhere."""
    from flows.commands.pack_cli import make_pack

    asked = asked_for(given | {"rivals": "none", "oracle": False, "export": "none", "out": pack}, settings, config)
    make_pack(asked, settings, pack, small_pack, as_json)
