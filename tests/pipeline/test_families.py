"""A family that comes from elsewhere is taken like those that ship with the project, and nothing names a family."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from bico.errors import ConfigError
from bico.models import families
from bico.models.loading import load, resolve
from bico.models.releases import releases_at
from tests import toy_family
from tests.command import run
from tests.flow_setup import SHORT
from tests.releases import write_release
from tests.toy_family import FAMILY, ToyModel, write_toy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the table end with the test."""
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    monkeypatch.setattr(families, "_loaded", set())


@pytest.fixture
def toy(table: None) -> None:
    families.register(FAMILY)


def test_a_family_of_one_file_goes_through_a_transfer_and_what_it_exports_is_measured_the_same(
    toy: None,
    api: None,
    scheduler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BICO_DASK_SCHEDULER", scheduler)
    assert PREFECT_API_URL.value()
    old, new = (str(write_toy(tmp_path / name, seed)) for seed, name in enumerate(("old", "new")))
    brief = {"finetune": SHORT | {"steps": 20, "lr": 0.01}, "test_limit": 40, "export": "all"}
    (tmp_path / "brief.yaml").write_text(yaml.safe_dump(brief))
    asked = ["--source", old, "--target", new, "--task", "digits", "--methods", "bico,naive", "--samples", "8"]
    more = ["--config", str(tmp_path / "brief.yaml"), "--seeds", "0", "--out", str(tmp_path / "out"), "--json"]
    assert run(["transfer", *asked, *more], monkeypatch) == 0
    result = json.loads(capsys.readouterr().out)
    accuracy = {row["method"]: row["accuracy"] for row in result["rows"]}
    assert {"zero-shot", "bico", "naive", "expert"} <= set(accuracy) and accuracy["naive"] != accuracy["zero-shot"]
    exported = {Path(folder).name: folder for folder in result["outputs"]["models"].values()}
    for name, method in (("digits-bico-n8-seed0", "bico"), ("digits-naive", "naive")):
        folder = exported[name]
        card = (Path(folder) / "README.md").read_text()
        assert "library_name: toys" in card and "as toys have them" in card and "points over zero-shot" in card
        command = ["evaluate", folder, "--task", "digits", "--test-limit", "40", "--json"]
        assert run(command, monkeypatch) == 0
        [row] = json.loads(capsys.readouterr().out)["rows"]
        assert row["accuracy"] == pytest.approx(accuracy[method])


def test_its_folders_are_found_wherever_models_are(toy: None, tmp_path: Path) -> None:
    for seed, name in enumerate(("v10", "v9")):
        write_toy(tmp_path / name, seed)
    write_release(tmp_path / "v11", seed=1)
    (tmp_path / "notes").mkdir()
    assert [release.name for release in releases_at(str(tmp_path), tmp_path)] == ["v9", "v10", "v11"]
    assert isinstance(load(resolve(str(tmp_path / "v9"))), ToyModel)
    assert toy_family.CONFIG in families.hub_patterns()


def test_a_package_brings_a_family_by_an_entry_point(table: None, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("toy", "tests.toy_family:FAMILY", families.GROUP)
    monkeypatch.setattr(families, "entry_points", lambda group: [point] if group == families.GROUP else [])
    assert "toy" not in families.FAMILIES  # before anybody asks
    assert families.get_family("toy") is FAMILY
    broken = EntryPoint("broken", "tests.no_such_family:FAMILY", families.GROUP)
    monkeypatch.setattr(families, "entry_points", lambda group: [broken])
    with pytest.raises(ConfigError, match=r"'broken' \(tests.no_such_family:FAMILY\) cannot be imported.*uninstall"):
        families.families()


def test_what_is_no_family_or_takes_anothers_scheme_is_refused(table: None) -> None:
    with pytest.raises(ConfigError, match="no family of models: it lacks name, library"):
        families.register(SimpleNamespace())
    greedy = type("Greedy", (toy_family.ToyFamily,), {"references": families.FAMILIES["clip"].references})()
    with pytest.raises(ConfigError, match="the scheme 'open_clip' is taken"):
        families.register(greedy)
    with pytest.raises(ConfigError, match="no model family 'tpy'"):
        families.get_family("tpy")


@pytest.mark.parametrize(
    ("library", "ref", "extra"), [("open_clip", "zoo:mini-a", "clip"), ("transformers", "zoo:t5-mini-a", "text")]
)
def test_a_missing_library_is_one_line_that_names_the_extra(
    library: str, ref: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resolve(ref)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{ref}: .*need {library}.*pip install 'bico\[{extra}\]'") as caught:
        load(files)
    assert "\n" not in str(caught.value)
    if library == "open_clip":
        with pytest.raises(ConfigError, match=r"pip install 'bico\[clip\]'"):
            resolve("open_clip:ViT-B-16/openai")


def test_finding_models_needs_no_familys_library_and_help_texts_not_even_torch() -> None:
    code = """
import sys
from bico.models.families import families, spellings
spellings(families())
assert "torch" not in sys.modules
from bico.models import zoo
from bico.models.loading import resolve
for name in zoo.list_models():
    resolve(f"zoo:{name}").digest()
print(sorted({"open_clip", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def mentions(path: Path) -> Iterator[str]:
    """Where a file's code, comments and docstrings aside, names a family or its library."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            names = [node.value]
        else:
            continue
        for name in names:
            if (
                "open_clip" in name
                or "transformers" in name.split(".")
                or {"clip", "t5"} & set(name.lower().split("."))
                or name.startswith(("bico.models.encoder", "bico.models.decoder"))
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}"


def test_nothing_beside_a_familys_own_package_names_it() -> None:
    own = {ROOT / "bico/models" / name for name in ("clip", "decoder", "encoder", "t5")}
    shared = ROOT / "bico/models/muted.py"  # of the families that one library loads, imported by them alone
    found = [
        mention
        for part in ("bico", "storage", "tasks", "flows")
        for path in sorted((ROOT / part).rglob("*.py"))
        if not own & set(path.parents) and path != shared
        for mention in mentions(path)
    ]
    table = [mention.split(": ", 1) for mention in found]
    entries = [f"bico.models.{name.lower()}.family.{name}" for name in ("CLIP", "DECODER", "ENCODER", "T5")]
    assert [name for _, name in table] == entries, found
    assert all(place.startswith("bico/models/families.py") for place, _ in table)
