"""The transfer that a command line and a file ask for."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.commands.options import whole_names


def asked_for(
    given: dict[str, Any],
    settings: dict[str, Any],
    config: Path | None = None,
    quick: bool = False,
    full: bool = False,
) -> Any:
    """The transfer that options and a file ask for: of what differs, options win, then a preset, then the file.

    Raises:
        ConfigError: If they make none.
    """
    from bico.errors import ConfigError
    from flows.config import PRESETS, make_config, read_config
    from flows.planning.experts import tasks_named

    if quick and full:
        raise ConfigError("--quick and --full are opposites: give one of them.")
    given = (PRESETS["quick"] if quick else PRESETS["full"] if full else {}) | given
    look_early((given.get("source"), given.get("target")), experts_of(given), settings)
    data = given.get("data", [])
    if given.get("tasks") == ["all"]:
        from bico.data.tasks import all_tasks

        given["tasks"] = all_tasks(data)
    elif "tasks" in given:
        given["tasks"] = whole_names(given["tasks"], names_of(data))
    elif data and not config and not tasks_named(given.get("experts", [])):
        given["tasks"] = names_of(data)
    return read_config(config, given) if config else make_config(given, "bico transfer")


def experts_of(given: dict[str, Any]) -> list[Path]:
    """The files and folders of experts among options."""
    from flows.planning.experts import parse

    return [parse(text)[1] for text in given.get("experts", [])]


def look_early(models: Iterable[str | None], experts: Iterable[Path], settings: dict[str, Any]) -> None:
    """Raises CheckpointError if names and first bytes of files tell that a model or an expert cannot be read: before
    anything that takes seconds to import.
    """
    from bico.adapters.folder import find_expert
    from bico.models.families import look_at

    said = settings.get("allow_pickle") or os.environ.get("BICO_ALLOW_PICKLE", "")
    allowed = str(said).lower() in ("1", "true", "yes", "on")
    for expert in experts:
        find_expert(expert, allowed)
    for ref in models:
        if ref is not None:
            look_at(ref, allowed)


def names_of(data: list[Path]) -> list[str]:
    """Names of the tasks that folders of data hold."""
    from bico.data.tasks import folders_by_task

    return list(folders_by_task(data))
