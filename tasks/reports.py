"""Write a report: Markdown for people, CSV for programs, and an artifact in Prefect."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE


@task(name="write-report", task_run_name="write-report {name}", cache_policy=NO_CACHE, persist_result=False)
def write_report(out: Path, name: str, text: str, records: Sequence[Mapping[str, Any]] = ()) -> dict[str, Path]:
    """Writes NAME.md and, if there are records, NAME.csv.

    Returns:
        The files written, by kind: "markdown" and "table".
    """
    out = out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    written = {"markdown": _write(out / f"{name}.md", text.rstrip() + "\n")}
    if records:
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        written["table"] = _write(out / f"{name}.csv", table.getvalue())
    create_markdown_artifact(text, key=re.sub("[^a-z0-9]+", "-", name.lower()), description=name)
    return written


@task(name="show-page", task_run_name="show-page {key}", cache_policy=NO_CACHE, persist_result=False)
def show_page(key: str, text: str, description: str) -> None:
    """Leaves a page in Prefect."""
    create_markdown_artifact(text, key=key, description=description)


def _write(path: Path, text: str) -> Path:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)
