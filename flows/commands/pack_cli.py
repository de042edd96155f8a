"""`bico calibrate --pack` and `bico transfer --pack`: what they check and print."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bico.errors import ConfigError, at_home

SERVES = (
    *("source", "target", "tasks", "data", "image_column", "label_column", "text_columns", "prompts", "class_names"),
    *(
        "test_share",
        "test_seed",
        "methods",
        "samples",
        "seeds",
        "loss",
        "alpha",
        "experts",
        "expert_farthest",
        "pooling",
    ),
    *("test_limit", "out"),
)
"""What of a transfer has a part in one with a pack."""


def make_pack(config: Any, settings: dict[str, Any], place: Path, small: bool, as_json: bool) -> None:
    """Makes a pack, and says what it exposes."""
    from bico.calibration.pack import exposed
    from flows.commands.console import log_to_stderr
    from flows.packs import calibrate_flow, plan_pack
    from flows.services.server import prefect_api
    from flows.settings import Settings
    from tasks.pack import read_pack

    log_to_stderr()
    settled, place = Settings.from_environment(**settings), at_home(place).absolute()
    plan_pack(config, settled, small)
    with prefect_api():
        result = calibrate_flow(config, settled, place, small)
    said = exposed(read_pack(place))
    if as_json:
        print(json.dumps(result | {"exposed": said}))
        return
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    print("\n".join([*said, f"Pack:    {place} ({size / 1e6:.1f} MB)"]))


def transfer_packed(
    place: Path, given: dict[str, Any], settings: dict[str, Any], other: Mapping[str, Any], as_json: bool
) -> None:
    """Carries experts with a pack.

    Raises:
        ConfigError: If something was asked for that has no part in it.
    """
    if strange := [*(name for name in given if name not in SERVES), *(name for name, said in other.items() if said)]:
        raise ConfigError(f"--{strange[0].replace('_', '-')} has no part in a transfer with a pack: leave it out.")
    from flows.commands.console import log_to_stderr
    from flows.packs import plan_packed, transfer_packed_flow
    from flows.services.server import prefect_api
    from flows.settings import Settings

    log_to_stderr()
    settled = Settings.from_environment(**settings)
    plan_packed(place, given, settled)
    with prefect_api():
        result = transfer_packed_flow(place, given, settled)
    if as_json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print(f"{row['task']:16} {row['method']:16} {row['accuracy']:6.2f} %")
    if not result["rows"]:
        print("Nothing was measured: the data are not here (give --data, where they are).")
    for name, folder in result["outputs"]["models"].items():
        print(f"{name}: {folder}")
