"""The types hold: mypy, as pyproject.toml configures it, finds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_types_hold() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_a_wrong_type_is_found(tmp_path: Path) -> None:
    """That the configuration is strict: a function without any annotations is checked too."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def longer(text):\n    return len('x') + 'y'\n")
    # The same cache: else all that a plug-in or a built-in type needs would be read anew.
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *config, str(wrong)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "[operator]" in done.stdout, done.stdout + done.stderr
