"""What holds for the project as a whole: who imports whom, what lies where, and what no file may contain."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = {
    "flows", "tasks", "storage", "tests", "notebooks", "bico", "configs", "zoo", "benchmarks", "docs", ".ci",
    "prefect.yaml", "pyproject.toml", "README.md", "Makefile", "constraints.txt", ".gitignore",
}  # fmt: skip
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


def test_the_top_level_is_the_one_in_the_design() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} <= LAYOUT


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
