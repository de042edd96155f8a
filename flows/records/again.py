"""A finished run asked for again: found from what was asked, what it read and what it left, before anything is started.

A run leaves a record under `home/finished/`: everything that was asked for, the files that it read, the artefacts that it
used, the files that it wrote, its rows, and its run in MLflow. Asked for the same again, and with all of that as it was,
nothing is to be done: neither models nor Prefect, Dask or MLflow are needed to say so. Anything else, such as a file that
was touched, an artefact that is gone, another line of source, or a run that was deleted from MLflow, is no repetition, and
the run takes its usual way, on which every stage looks into the store for itself.

Files are compared by name, size and times, as make and git do; the store's own digests are for those who read artefacts.
"""

import hashlib
import json
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bico.errors import StoreError
from bico.reporting.rows import Row
from flows.config import TransferConfig
from flows.records.result import Result
from flows.records.versions import versions
from flows.settings import Settings
from storage.artefacts import open_store
from storage.manifest import FaultError

if TYPE_CHECKING:
    from flows.planning.plan import Plan

FORMAT = 1
FOLDER = "finished"
SOURCES = ("bico", "flows", "storage", "tasks", "zoo")
UNPINNED = ("hf:", "hf-hub:")
"""Begin references whose newest revision is asked for."""

Stamp = list[Any]
"""(path, size, time of change of the content in ns, and of the file in ns)."""


@dataclass(frozen=True)
class Finished:
    """A run that was made before, whose results hold."""

    result: Result
    """As the same run would give it now: every stage found in the store."""
    made: float
    """When, in seconds since 1970."""
    disk: dict[str, int]


def stamps(paths: Iterable[str | Path]) -> list[Stamp]:
    """What tells that files are as they were, of each file and of all files below each folder.

    Raises:
        OSError: If one is not there.
    """
    return [
        [str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns]
        for place in sorted(map(str, paths))
        for path in _files(Path(place))
        for about in [path.stat()]
    ]


def _files(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from (path for path in sorted(place.rglob("*")) if path.is_file())
    else:
        yield place


def reads(plan: "Plan") -> list[str] | None:
    """The files and folders that a run reads; None if what it reads can change without any of them changing."""
    config = plan.config
    pinned = all("@" in ref or not ref.startswith(UNPINNED) for ref in (config.source, config.target))
    if not pinned and os.environ.get("HF_HUB_OFFLINE", "") not in ("1", "true", "yes"):
        return None
    given: list[str | Path] = [*config.expert_files, *([config.expert_head] if config.expert_head else [])]
    data: set[str | Path] = {folder for task in plan.tasks.values() for folder in task.folders}
    return sorted({str(Path(path).absolute()) for path in (*plan.source.files, *plan.target.files, *given, *data)})


def inputs_of(plan: "Plan") -> list[Stamp] | None:
    """How what a run reads looks now; None if that tells nothing."""
    places = reads(plan)
    try:
        return None if places is None else stamps(places)
    except OSError:
        return None


def keep(plan: "Plan", settings: Settings, result: Result, before: list[Stamp] | None, disk: dict[str, int]) -> None:
    """Leaves the record of a run that has just ended, unless it cannot be told apart from another.

    Arguments:
        before: `inputs_of` the plan when the run began: what was changed meanwhile may have been read or not.
        disk: Bytes, by place.
    """
    from storage.gc import runs

    if before is None or plan.config.register_as is not None:
        return
    with suppress(OSError, StoreError):  # a record spares time, and its want costs no more than that
        if inputs_of(plan) != before:
            return
        note = runs(open_store(settings.store)).get(result.outputs["prefect"]["flow_run"])
        if note is None:
            return
        record = {
            "format": FORMAT,
            "made": time.time(),
            "reads": reads(plan),
            "inputs": before,
            "artefacts": note["keys"],
            "written": stamps(_paths(result.outputs)),
            "rows": [row.record() for row in result.rows],
            "outputs": result.outputs,
            "stages": {stage: {"computed": 0, "cached": sum(n.values())} for stage, n in result.stages.items()},
            "disk": disk,
        }
        file = _record(plan.config, settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(record), encoding="utf-8")
        unfinished.replace(file)


def find(config: TransferConfig, settings: Settings) -> Finished | None:
    """Returns the run that was made of just this, if it still holds in every part."""
    file = _record(config, settings)
    if config.register_as is not None or not file.exists():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        rows = [Row.parse(row) for row in record["rows"]]
        holds = (
            record["format"] == FORMAT
            and all(_as_it_was(stamp) for stamp in record["written"])
            and stamps(record["reads"]) == record["inputs"]
            and is_recorded(record["outputs"]["mlflow"])
            and _are_there(settings, record["artefacts"])
        )
        result = Result(rows, record["outputs"], record["stages"])
        return Finished(result, float(record["made"]), record["disk"]) if holds else None
    except (OSError, ValueError, KeyError, TypeError, StoreError):
        return None  # whatever is wrong with it, the usual way tells or mends it


def sweep(home: Path, store: str) -> int:
    """Removes records whose artefacts are gone, and returns how many went."""
    gone = 0
    for file in sorted((home / FOLDER).glob("*.json")):
        with suppress(OSError, ValueError, KeyError):
            known = set(open_store(store).backend.listed())
            if not {*json.loads(file.read_text(encoding="utf-8"))["artefacts"]} <= known:
                file.unlink()
                gone += 1
    return gone


def is_recorded(run: dict[str, Any]) -> bool:
    """Whether MLflow has a finished run; asked of its database, or of its server, without its library."""
    with suppress(OSError, sqlite3.Error, urllib.error.URLError, ValueError, KeyError):
        if run["uri"].startswith("sqlite:///"):
            place = Path(run["uri"].removeprefix("sqlite:///")).as_uri() + "?mode=ro"
            with closing(sqlite3.connect(place, uri=True, timeout=5)) as database:
                asked = "SELECT status, lifecycle_stage FROM runs WHERE run_uuid = ?"
                return database.execute(asked, (run["run"],)).fetchone() == ("FINISHED", "active")
        if run["uri"].startswith("http"):
            address = f"{run['uri'].rstrip('/')}/api/2.0/mlflow/runs/get?run_id={run['run']}"
            with urllib.request.urlopen(address, timeout=5) as answer:
                about = json.load(answer)["run"]["info"]
            return (about["status"], about["lifecycle_stage"]) == ("FINISHED", "active")
    return False


def _record(config: TransferConfig, settings: Settings) -> Path:
    """Where the record of a run lies: named by all that was asked, and by the program that was asked."""
    asked = [
        FORMAT,
        config.model_dump(mode="json"),
        str(Path.cwd()),
        [settings.store, settings.mlflow_uri, settings.experiment, settings.allow_pickle, settings.memory],
        versions(),
        _sources(),
    ]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return settings.home.absolute() / FOLDER / f"{digest[:32]}.json"


def _sources() -> str:
    """Of every file of the program, its size and when it was changed. An edited comment costs the usual way once."""
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            about = path.stat()
            total.update(f"{path.relative_to(root)} {about.st_size} {about.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _as_it_was(stamp: Stamp) -> bool:
    return stamps([stamp[0]]) == [stamp]


def _are_there(settings: Settings, keys: list[str]) -> bool:
    """Whether the store has artefacts, by their manifests and the sizes of their files: nothing of them will be read."""
    backend = open_store(settings.store).backend
    try:
        for key in keys:
            backend.look(key)
    except FaultError:
        return False
    return True


def _paths(outputs: dict[str, Any]) -> list[str]:
    """The files and folders among what a run has written."""
    found = []
    for value in outputs.values():
        values = value.values() if isinstance(value, dict) else [value]
        found += [one for one in values if isinstance(one, str) and Path(one).is_absolute() and Path(one).exists()]
    return found
