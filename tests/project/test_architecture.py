"""What holds for the project as a whole: who imports whom, what lies where, and what no file may contain."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "bico", "storage", "tasks", "flows", "zoo", "zoo_build", "configs", "tests", "benchmarks", "docs", "notebooks", ".ci",
    ".github",
}  # fmt: skip
"""The rooms of docs/architecture.md, and what hosts of repositories look for."""
BESIDE_THEM = re.compile(
    r"[A-Z][A-Z_]*\.md|LICENSE|CITATION\.cff|Makefile|pyproject\.toml|constraints\.txt|\.?[a-z][a-z-]*\.yaml|\.git\w+"
)
"""What every package has at the top: pages for people in capitals, settings of tools; code and data have a folder."""
KINDS = {
    "", ".py", ".typed", ".md", ".yaml", ".yml", ".json", ".csv", ".parquet", ".safetensors", ".ipynb", ".png", ".log",
    ".toml", ".txt", ".cff", ".css", ".js", ".jinja",
}  # fmt: skip
"""What is kept: text, tables, weights that cannot run code, and pictures that a page shows."""
FORBIDDEN = {
    "a path of one machine": re.compile(r"/(home|Users|root|work|opt|mnt)/\w"),
    "a package index": re.compile(r"index-url|find-links|files\.pythonhosted|/simple\b"),
    "unfinished work": re.compile("TO" + r"DO|FIX" + "ME"),
}


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_calls_go_down_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


HEAVY = {"flows", "tasks", "storage", "zoo_build", "prefect", "mlflow", "dask", "distributed", "zarr", "obstore"}
"""What tests of the library do without, and so the processes that run them alone."""


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, by the names as written."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_tests_of_the_library_import_the_library_alone() -> None:
    """`make test-fast` runs them, and what they share of `tests`; each import of a pipeline costs seconds per process."""
    todo = [ROOT / "tests" / "conftest.py", *(ROOT / "tests" / "library").glob("*.py")]
    seen, heavy = set(todo), []
    while todo:
        path = todo.pop()
        for name in imported(path):
            if name.partition(".")[0] in HEAVY:
                heavy.append(f"{path.relative_to(ROOT)}: {name}")
            helper = ROOT / f"{name.replace('.', '/')}.py"
            if name.startswith("tests.") and helper.is_file() and helper not in seen:
                seen.add(helper)
                todo.append(helper)
    assert not heavy and ROOT / "tests" / "tiny.py" in seen, sorted(heavy)


def strays(names: Iterable[str]) -> list[str]:
    """Those of a repository's paths that have no place in it."""
    found = []
    for name in names:
        folder, below, _ = name.partition("/")
        at_home = folder in FOLDERS if below else BESIDE_THEM.fullmatch(name)
        if not at_home or (Path(name).suffix not in KINDS and not Path(name).name.startswith(".git")):
            found.append(name)
    return found


def test_every_file_has_its_place() -> None:
    assert strays(str(path.relative_to(ROOT)) for path in tracked()) == []


def test_what_has_no_place_is_named() -> None:
    junk = [
        "notes.txt",
        "fix.py",
        "tmp/a.py",
        "bico/model.pt",
        "docs/talk.pptx",
        "run.log",
        "scripts/x.sh",
        "bico2/a.py",
    ]
    kept = ["CHANGELOG.md", "LICENSE", ".pre-commit-config.yaml", "prefect.yaml", "bico/py.typed", "docs/images/a.png"]
    assert strays([*junk, *kept]) == junk


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_contains(what: str) -> None:
    found = []
    for path in set(tracked()) - {Path(__file__).resolve()}:
        try:
            lines = path.read_text().splitlines()
        except (UnicodeDecodeError, FileNotFoundError):  # a weight file or picture; a file deleted but not committed
            continue
        found += [
            f"{path.relative_to(ROOT)}:{n}: {line}" for n, line in enumerate(lines, 1) if FORBIDDEN[what].search(line)
        ]
    assert not found, "\n".join(found)


def test_exact_versions_and_nothing_else_constrain_an_install() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+( ; .*)?", line) for line in lines)


def called(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, by its dotted name as written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_that_is_read_can_run_code() -> None:
    """YAML, checkpoints and models are data: no loader that builds arbitrary objects, no shell, no remote code."""
    found = []
    for path in tracked():
        if path.suffix != ".py" or path.parts[len(ROOT.parts)] == "tests":
            continue
        for name, call in called(path):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            unsafe = (
                (name.startswith("yaml.") and name not in ("yaml.safe_load", "yaml.safe_dump"))
                or (name == "torch.load" and given.get("weights_only") != "True")
                or (
                    name.endswith(("load_checkpoint", "load_state_dict"))
                    and name.startswith("factory.")
                    and given.get("weights_only") != "True"
                )
                or name in ("eval", "exec", "os.system", "os.popen")
                or name.partition(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
                or given.get("shell", "False") != "False"
                or given.get("trust_remote_code", "False") != "False"
                or given.get("allow_pickle") == "True"
            )
            if unsafe:
                found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:100]}")
    assert not found, "\n".join(found)


TABLE = re.findall(r"^\| (.+?) \| (.+?) \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
HOUSE = ("bico/", "storage/", "tasks/", "flows/", "zoo_build/", "configs/", "benchmarks/", "tests/", "docs/")


def test_what_the_documents_name_is_there() -> None:
    """Every path in backquotes of every page; the table of where is what has some twenty rows of them."""
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    missing = [
        f"{page.name}: {name}"
        for page in pages
        for name in re.findall(r"`((?:\w+/)+[\w.-]*)`", page.read_text())
        if name.startswith(HOUSE) and not (ROOT / name).exists()
    ]
    assert not missing, missing
    rows = [where for _, where in TABLE if any(f"`{part}" in where for part in HOUSE)]
    assert len(rows) >= 20


def test_few_names_stand_directly_under_the_library() -> None:
    names = {path.name for path in (ROOT / "bico").iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    assert len(names) <= 14, sorted(names)
