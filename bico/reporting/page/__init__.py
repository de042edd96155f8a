"""One page about a run: self-contained, opened from disk, and written from the run's record alone.

Nothing is fetched: style and script stand in the page, plots are inline SVG, and a content policy forbids the browser to
ask anybody for anything.
"""

from importlib.resources import files

from bico.reporting.page import sections
from bico.reporting.page.html import Html, join, tag
from bico.reporting.page.record import RunRecord
from bico.reporting.page.verdict import verdict

__all__ = ["RunRecord", "render"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""What the browser may load: what stands in the page."""
PARTS = (
    sections.curves,
    sections.table,
    sections.models,
    sections.strengths,
    sections.layers,
    sections.calibration,
    sections.cost,
    sections.repeat,
)


def render(record: RunRecord) -> str:
    """Returns the page as the text of an HTML file."""
    found = [part for make in PARTS if (part := make(record)) is not None] if record.rows else []
    finished = f"Finished {record.finished.replace('T', ' ').replace('+00:00', ' UTC')}." if record.finished else ""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="description", content=verdict(record)),
        tag("title", f"{record.title} – BiCo"),
        tag("style", _asset("page.css")),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#results", class_="skip"),
        tag("main", sections.opening(record), *found),
        tag("footer", f"{finished} This page holds all it shows and asks nobody for anything."),
        tag("div", id="tip", hidden=True),
        tag("script", _asset("page.js")),
    )
    return "<!doctype html>\n" + join(tag("html", head, body, lang="en")) + "\n"


def _asset(name: str) -> Html:
    return Html(files(__package__).joinpath("assets", name).read_text(encoding="utf-8"))
