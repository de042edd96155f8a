"""The page of a run, as a file, and the record that it can be made from again."""

import os
from pathlib import Path

from bico.reporting.page import render
from bico.reporting.page.record import RunRecord

PAGE, RECORD = "report.html", "run.json"


def write_page(out: Path, record: RunRecord) -> dict[str, str]:
    """Writes page and record into a folder and returns their paths, by kind."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in ((RECORD, record.to_json()), (PAGE, render(record))):
        with replacing(out / name) as path:
            path.write_text(text, encoding="utf-8")
    return {"page": str(out / PAGE), "record": str(out / RECORD)}


class replacing:  # noqa: N801 - it reads as a verb
    """Gives a temporary path beside the real one and moves it there when all went well."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.temporary.replace(self.path)
        else:
            self.temporary.unlink(missing_ok=True)
