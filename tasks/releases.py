"""What the watch over releases remembers: which it has seen, what came out, and what a person decided."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from bico.errors import ConfigError
from bico.models.loading import resolve
from bico.models.releases import Release, releases_at
from bico.reporting.merged import MergedRow
from bico.reporting.rows import Row

RECORD = "record.json"


@dataclass(frozen=True)
class Record:
    """One release, as far as it has come."""

    release: str
    target: str
    """The model's reference."""
    digest: str
    rows: tuple[Row, ...] = ()
    """Of all experts; empty until they have been carried over."""
    runs: Mapping[str, dict[str, str]] = field(default_factory=dict)
    """Where MLflow has the transfers (`record_run`), by expert."""
    watcher: str = ""
    """The flow run that asks a person."""
    published: bool | None = None
    """What the person said; None before that."""
    comment: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Registered versions, by model."""
    merged: tuple[MergedRow, ...] = ()
    """Of all experts put together, on the task of each; empty where there is one, or they do not go together."""
    merged_run: Mapping[str, str] = field(default_factory=dict)
    """Where MLflow has that."""
    notes: tuple[str, ...] = ()
    """What a person should know besides."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigError if the file is none of a record."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            parsed = {
                "rows": tuple(Row.parse(row) for row in content["rows"]),
                "merged": tuple(MergedRow(**row) for row in content.get("merged", [])),
                "notes": tuple(content.get("notes", [])),
            }
            return cls(**content | parsed)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: not the record of a release ({error!r}): mend it, or delete its folder."
            ) from error

    def write(self, folder: Path) -> None:
        """Replaces what is there, at once or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{RECORD}.{os.getpid()}"
        rows = {"rows": [row.record() for row in self.rows], "merged": [row.to_json() for row in self.merged]}
        unfinished.write_text(json.dumps(vars(self) | rows, indent=1))
        unfinished.replace(folder / RECORD)


def records(out: Path) -> list[Record]:
    """All releases that have been looked at, in the order in which they were last written."""
    found = sorted(out.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime_ns)
    return [Record.read(path) for path in found]


@task(name="find-release", task_run_name="find-release", cache_policy=NO_CACHE, persist_result=False)
def find_release(place: str, out: Path) -> tuple[Release, str] | None:
    """Returns the oldest release that nobody has decided on, with its digest; None if there is none.

    A release that was replaced under its name is a new one.
    """
    decided = {(record.release, record.digest) for record in records(out) if record.published is not None}
    for release in releases_at(place, out / "downloads"):
        digest = resolve(str(release.folder)).digest()
        if (release.name, digest) not in decided:
            get_run_logger().info("New release: %s", release.name)
            return release, digest
    get_run_logger().info("No new release at %s", place)
    return None


@task(name="show-release", task_run_name="show-release {record.release}", cache_policy=NO_CACHE, persist_result=False)
def show_release(record: Record, table: str, verdict: str, pages: Mapping[str, str]) -> str:
    """Leaves the page that a person decides by, and returns it.

    Arguments:
        table: Results and comparison, in Markdown.
        pages: Where the runs can be looked at, by name.
    """
    links = "\n".join(f"- [{name}]({address})" for name, address in pages.items())
    text = f"# Release {record.release}\n\n**{verdict}**\n\n{table}\n\n{links}\n"
    create_markdown_artifact(text, key="release", description=f"{record.release}: {verdict}")
    return text


def question(verdict: str, release: str) -> dict[str, Any]:
    """What stands above the form in Prefect."""
    return {"description": f"Publish the models that were carried over to **{release}**?\n\n{verdict}"}
