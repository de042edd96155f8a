"""What repeats a run, and whether another one has an output folder already."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from bico.adapters.folder import find_expert
from bico.errors import ConfigError, OutputError
from bico.models.files import hashed_once
from bico.models.loading import ModelFiles
from bico.reporting.page.record import RunRecord
from flows.commands.options import Field, fields_of
from flows.config import TransferConfig
from tasks.inputs import TaskRef

RECORD = "run.json"
"""In an output folder: what its run was, and what came out."""
MODELS = "models"
_NO_OTHER_RUN = ("out", "export", "register_as", "batch_size")
"""Fields that change what is written or kept in memory, and no number."""


def command_of(config: TransferConfig) -> str:
    """The command line of a run: what differs from the defaults. What no option can hold stands in the settings.

    Example:
        >>> command_of(TransferConfig(source="zoo:mini-a", target="zoo:mini-b", tasks=["digits"], samples=[5], oracle=False))
        'bico transfer --source zoo:mini-a --target zoo:mini-b --task digits --samples 5 --no-oracle'
    """
    fields = {field.name: field for field in fields_of(TransferConfig)}
    if config.expert is not None:  # a file has a key for one expert; there is one option for all
        config = config.model_copy(update={"expert": None, "experts": [*config.experts, str(config.expert)]})
    changed = [name for name in TransferConfig.model_fields if getattr(config, name) != fields_default(name)]
    if any(name not in fields for name in changed):
        return f"bico transfer --config settings.yaml --out {shlex.quote(str(config.out))}"
    return " ".join(["bico transfer", *(_option(fields[name], getattr(config, name)) for name in changed)])


def fields_default(name: str) -> Any:
    """The value of a field that nobody gave; None if it has to be given."""
    field = TransferConfig.model_fields[name]
    return None if field.is_required() else field.get_default(call_default_factory=True)


def settings_of_run(config: TransferConfig) -> str:
    """The configuration as YAML: what differs from the defaults."""
    plain = config.model_dump(mode="json")
    kept = {name: value for name, value in plain.items() if getattr(config, name) != fields_default(name)}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=10_000)


def _option(field: Field, value: Any) -> str:
    yes_no = field.names[0].split("/")
    if isinstance(value, bool):
        return yes_no[0] if value else yes_no[1]
    if isinstance(value, list) and (field.option.whole or field.type == list[Path]):
        return " ".join(f"{field.names[0]} {shlex.quote(str(one))}" for one in value)
    values = value if isinstance(value, list) else [value]
    text = ",".join(str(one.value if isinstance(one, Enum) else one) for one in values)
    return f"{field.names[0]} {shlex.quote(text)}"


def identity_of(config: TransferConfig, source: ModelFiles, target: ModelFiles, tasks: Mapping[str, TaskRef]) -> str:
    """Digest of all that determines a run's numbers: two runs with one may share an output folder."""
    asked = {k: v for k, v in config.model_dump(mode="json").items() if k not in _NO_OTHER_RUN}
    posed = {name: task.open().identity for name, task in tasks.items()}
    places = [*config.expert_files, *([config.expert_head] if config.expert_head else [])]
    given = [expert_digest(place, source.allow_pickle) for place in places]
    about = [asked, source.digest(), target.digest(), posed, given]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:24]


def expert_digest(place: Path, allow_pickle: bool) -> str:
    """sha256 over the files of an expert's weights."""
    total = hashlib.sha256()
    for path in find_expert(place, allow_pickle):
        total.update(hashed_once(path))
    return total.hexdigest()


def check_out(out: Path, identity: str) -> None:
    """A run replaces tables and plots of an earlier one, and never stands beside another's models.

    Raises:
        OutputError: If another run has left models in the folder.
    """
    models = out / MODELS
    if not models.is_dir() or not any(not path.name.startswith(".") for path in models.iterdir()):
        return
    try:
        text = (out / RECORD).read_text(encoding="utf-8")
        earlier = RunRecord.parse(text, str(out / RECORD))
    except (OSError, ConfigError):
        whose = "models of a run that has left no record there"
    else:
        if earlier.identity == identity:
            return
        whose = f"the models of another run ({earlier.title}, {earlier.finished[:10]})"
    raise OutputError(
        f"--out {out} holds {whose}: give another folder, or delete {models} if nobody needs them; a repeated run may "
        "stay where it was."
    )
