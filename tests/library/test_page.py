"""A run's page: what it says, that it asks nobody for anything, and that its record comes back as it was."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bico.errors import ConfigError
from bico.last_steps.curve import StrengthCurve
from bico.methods.spec import Spec
from bico.reporting.block_report import BlockReport
from bico.reporting.choice import Choice
from bico.reporting.page import render
from bico.reporting.page.html import VOID, tag
from bico.reporting.page.record import Draw, RunRecord, Written
from bico.reporting.page.verdict import verdict
from bico.reporting.rows import Row
from tests.rows import row

ROWS = tuple(
    row(task, method, samples, seed, base + gain + (seed or 0))
    for task, base in (("digits", 80.0), ("<b>&lamps", 40.0))
    for method, samples, seed, gain in (
        ("zero-shot", 0, None, 0.0),
        ("bico", 10, 0, 4.0),
        ("bico", 10, 1, 4.0),
        ("bico", 100, 0, 9.0),
        ("bico", 100, 1, 9.0),
        ("none+head", 100, 0, -3.0),
        ("none+head", 100, 1, -3.0),
        ("naive", 0, None, 0.5),
        ("fine-tuned", 0, None, 18.0),
        ("expert", 0, None, 12.0),
    )
)
BEST = next(one for one in ROWS if (str(one.method), one.budget.asked, one.seed) == ("bico", 100, 1))
RECORD = RunRecord(
    "mini-a-to-mini-b",
    "zoo:mini-a",
    "zoo:mini-b",
    ROWS,
    {"zoo:mini-a": "ab" * 32},
    blocks=(
        BlockReport("digits", "block-0", {"input": 1.0, "output_grad": 0.9}, 0.01, 1.5, 0.2),
        BlockReport("digits", "block-1", {"input": 1.0, "output_grad": 0.3}, 0.001),
    ),
    looked_into={"digits": "digits/bico/N=100/seed=1"},
    curves=((BEST.cell, StrengthCurve((0.0, 1.0, 2.0), (1.5, 1.0, 0.75), 2.0)),),
    draws=(Draw("digits", "random", 0, (10, 100), 100), Draw("digits", "random", 1, (10, 100), 100, 0.5)),
    choices=(Choice(BEST.cell, 88.0, 79.0, 8, "250 training samples that no calibration looked at"),),
    models={BEST.cell.folder: Written(f"models/{BEST.cell.folder}", BEST)},
    notes=("<script>alert(1)</script>",),
    command="bico transfer --source zoo:mini-a --target zoo:mini-b",
    settings="source: zoo:mini-a\n",
    stages={"evaluate": {"computed": 3, "cached": 1}},
    phases=(("collect on digits", 1.25),),
    planned={"time": "2 s"},
    measured={"time": "1.3 s"},
    versions={"torch": "2.15"},
    machine="x86_64, 2 cores",
    finished="2026-11-29T12:00:00+00:00",
    identity="0123",
    links={"MLflow": "http://127.0.0.1:5000/#/x"},
)


class Page(HTMLParser):
    """What a browser would make of it, as far as the tests look."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


PAGE = render(RECORD)
SEEN = Page(PAGE)
TEXT = " ".join(" ".join(SEEN.text).split())


def test_the_page_is_well_formed_and_says_what_came_out() -> None:
    assert not SEEN.open
    for said in (
        "mini-b gains 10.0 points by BiCo: 80.0 → 90.0 % (digits).",
        "+10.0",
        "56 %",  # of the way to fine-tuning
        "89.5 ± 0.7",
        "+9.5",
        "−2.5",  # of the rival
        "88.0 (79.0)",
        "250 training samples that no calibration looked at",
        "strength 2, by the loss on the labels",
        "few directions (output gradients)",
        "50 %",  # of characters cut alike
        "1.3 s",
        "2.15",
        "ab" * 32,
        "bico transfer --source zoo:mini-a --target zoo:mini-b",
    ):
        assert said in TEXT, said


def test_no_request_leaves_the_page() -> None:
    """A content policy forbids it, and there is nothing that would make one."""
    (policy,) = (a["content"] for a in SEEN.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    for name, attributes in SEEN.elements:
        assert name not in ("link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source")
        for key in ("src", "srcset", "href", "action", "poster", "data", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#"), (name, attributes)
        assert "url(" not in (attributes.get("style") or "")
    assets = "".join(re.findall(r"<(?:style|script)>(.*?)</", PAGE, re.DOTALL))
    assert len(assets) > 5000 and not re.search(r"https?:|//\w|url\(|@import|fetch|XMLHttp|import\(", assets)


def test_a_screen_reader_finds_its_way() -> None:
    assert SEEN.all("html")[0]["lang"] == "en" and len(SEEN.all("h1")) == 1 and len(SEEN.all("main")) == 1
    assert all(heading.get("scope") in ("col", "row", "rowgroup") for heading in SEEN.all("th"))
    assert len(SEEN.all("caption")) == len(SEEN.all("table")) >= 5
    for plot in (svg for svg in SEEN.all("svg") if svg.get("class") == "plot"):
        assert plot["role"] == "img" and plot["aria-label"]
    ids = [attributes["id"] for _, attributes in SEEN.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert all(a["aria-labelledby"] in ids for a in SEEN.all("section"))
    assert all(attributes["href"].removeprefix("#") in ids for attributes in SEEN.all("a"))  # type: ignore[union-attr]


def test_names_from_outside_are_text_and_never_markup() -> None:
    assert "<b>&lamps" in TEXT and "<script>alert(1)</script>" in TEXT
    assert len(SEEN.all("script")) == 1 and not SEEN.all("b")
    assert tag("td", "<&>", title='"') == '<td title="&quot;">&lt;&amp;&gt;</td>'


def test_a_record_comes_back_as_it_was_and_makes_the_same_page() -> None:
    again = RunRecord.parse(RECORD.to_json(), "run.json")
    assert again == RECORD and render(again) == PAGE
    for broken in ("{}", "[", RECORD.to_json().replace('"rows"', '"lines"')):
        with pytest.raises(ConfigError, match=r"run\.json: not the record of a run"):
            RunRecord.parse(broken, "run.json")
    with pytest.raises(ConfigError, match="written by a later bico"):
        RunRecord.parse(RECORD.to_json().replace('"bico_run": 1', '"bico_run": 2'), "run.json")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((), "Nothing was carried over to mini-b."),
        ((row("a", "zero-shot", 0, None, 50.0), row("a", "none+head", 5, 0, 60.0)), "Nothing was carried over"),
        ((row("a", "bico", 5, 0, 60.0),), "mini-b scores 60.0 % (a) with BiCo, N=5."),
        ((row("a", "zero-shot", 0, None, 50.0), row("a", "naive", 0, None, 49.0)), "Nothing is gained: naive brings"),
    ],
)
def test_a_page_of_little_is_a_page(rows: tuple[Row, ...], said: str) -> None:
    bare = RunRecord("a-to-b", "zoo:mini-a", "zoo:mini-b", rows)
    assert verdict(bare).startswith(said)
    seen = Page(render(bare))
    assert not seen.open and said in " ".join(" ".join(seen.text).split())


def test_where_nothing_is_better_the_page_says_so_loudly() -> None:
    lost = replace(RECORD, choices=(Choice(BEST.cell, 78.0, 79.0, 8, "x"),))
    seen = Page(render(lost))
    assert any(attributes.get("role") == "alert" for attributes in seen.all("p"))
    assert "no model was better than the target as it is: use the target there" in verdict(lost)
    assert Spec.parse("bico") == BEST.method and not any(a.get("role") == "alert" for a in SEEN.all("p"))
