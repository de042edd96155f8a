"""docs/errors.md says what the code says."""

from pathlib import Path

import pytest

from tests.errors_table import MISTAKES, Mistake, error_of, shown

ROWS = {
    line.split(" | ")[0].removeprefix("| "): line
    for line in (Path(__file__).parents[2] / "docs" / "errors.md").read_text().splitlines()
    if line.startswith("| ")
}


def test_the_table_lists_these_mistakes_and_no_others() -> None:
    assert set(ROWS) - {"input", "---"} == {mistake.what for mistake in MISTAKES}
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.what for mistake in MISTAKES])
def test_a_mistake_ends_in_the_line_that_the_table_shows(mistake: Mistake, tmp_path: Path) -> None:
    error = error_of(mistake, tmp_path)
    assert "\n" not in str(error)
    assert ROWS[mistake.what] == f"| {mistake.what} | `{type(error).__name__}` | {shown(error, tmp_path)} |"
