"""`bico cache`: look into the artefact store, check it, and free space."""

import json
import math
import re
import time
from collections import defaultdict
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bico.errors import ConfigError
from flows.commands.options import RECORDS, STORE, JsonOption, command

cache_app = typer.Typer(no_args_is_help=True, help="The artefact store: what is there, is it sound, what may go.")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@command(cache_app, "ls", where=STORE)
def list_(where: dict[str, Any], as_json: JsonOption = False) -> None:
    """List artefacts: size, age, whether a running process uses it, and by how many runs it was used."""
    from storage.gc import inventory

    found = list(inventory(_open(where)))
    if as_json:
        print(json.dumps([asdict(artefact) for artefact in found]))
        return
    for artefact in found:
        used = "in use" if artefact.in_use else f"{len(artefact.runs)} runs"
        print(f"{artefact.key:52} {_bytes(artefact.size):>9} {_age(artefact.created):>7}  {used}")


@command(cache_app, "du", where=STORE)
def du(where: dict[str, Any], as_json: JsonOption = False) -> None:
    """Add up sizes by stage."""
    from storage.gc import inventory

    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for artefact in inventory(_open(where)):
        for name in (artefact.stage, "total"):
            sums[name][0] += 1
            sums[name][1] += artefact.size
    if as_json:
        print(json.dumps({stage: {"artefacts": count, "bytes": size} for stage, (count, size) in sums.items()}))
        return
    for stage, (count, size) in sorted(sums.items(), key=lambda item: (item[0] == "total", -item[1][1])):
        print(f"{stage:24} {count:6} {_bytes(size):>9}")


@command(cache_app, "verify", where=STORE)
def verify(
    where: dict[str, Any],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged; the next run makes it again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything through and compare digests; exit code 1 if something is damaged."""
    from storage.gc import verify as read_through

    count, faults = read_through(_open(where), repair)
    if as_json:
        print(json.dumps({"artefacts": count, "damaged": faults}))
    else:
        for key, fault in faults.items():
            print(f"{key}: {fault}{' (removed)' if repair else ''}")
        print(f"{count} artefacts read through, {len(faults)} damaged.")
    if faults:
        raise typer.Exit(1)


@command(cache_app, "gc", where=RECORDS)
def gc(
    where: dict[str, Any],
    older_than: Annotated[str | None, typer.Option(help="Only what was made longer ago: 36h, 30d, 4w.")] = None,
    run: Annotated[str | None, typer.Option(help="Only what this flow run used and no other did.")] = None,
    keep_reachable: Annotated[bool, typer.Option("--keep-reachable", help="Only what no noted run used.")] = False,
    records: Annotated[
        bool, typer.Option("--records", help="Runs in MLflow and Prefect, too, that are older than --older-than.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete artefacts that all of the options given choose, never one that a running process uses.

    With --records also what old runs have left in MLflow (models, tables) and in Prefect; registered models stay.
    """
    from storage.gc import collect

    age = None if older_than is None else parse_age(older_than)
    if age is None and run is None and not keep_reachable:
        raise ConfigError("bico cache gc: say what may go: --older-than, --run or --keep-reachable.")
    if records and age is None:
        raise ConfigError("bico cache gc --records: say how old runs have to be: --older-than.")
    done = collect(_open(where), older_than=age, run=run, keep_reachable=keep_reachable, dry_run=dry_run)
    freed = None
    if records and age is not None:
        from flows.records.records_gc import collect_records
        from flows.settings import Settings

        freed = collect_records(Settings.from_environment(**where), age, dry_run)
    if as_json:
        content: dict[str, Any] = {"deleted": [h.key for h in done.deleted], "bytes": done.size}
        content |= {"in_use": [h.key for h in done.in_use]}
        content |= {} if freed is None else {"records": asdict(freed)}
        print(json.dumps(content | {"dry_run": dry_run}))
        return
    for artefact in done.deleted:
        print(f"{artefact.key:52} {_bytes(artefact.size):>9} {_age(artefact.created):>7}")
    verb = "would be deleted" if dry_run else "deleted"
    print(
        f"{len(done.deleted)} artefacts {verb} ({_bytes(done.size)}), {len(done.in_use)} kept because they are in use."
    )
    if freed is not None:
        print(f"{freed.mlflow} runs in MLflow ({_bytes(freed.bytes)}) and {freed.prefect} in Prefect {verb}.")


def _open(where: dict[str, Any]) -> Any:
    from flows.settings import Settings
    from storage.artefacts import ArtefactStore

    return ArtefactStore(Settings.from_environment(**where).store)


def parse_age(text: str) -> float:
    """Returns the seconds of an age such as 36h.

    Raises:
        ConfigError: If it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if not found:
        raise ConfigError(f"--older-than {text}: give a number and a unit, as in 36h, 30d or 4w.")
    return float(found[1]) * _UNITS[found[2]]


def _bytes(size: float) -> str:
    power = min(4, int(math.log10(max(size, 1)) / 3))
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _age(created: float) -> str:
    if not created:
        return "?"
    seconds = max(0.0, time.time() - created)
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"
