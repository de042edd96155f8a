"""Running the command line inside the test's process."""

import sys

import pytest

from flows.cli import main


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["bico", *arguments])
    try:
        main()
    except SystemExit as exit_:
        return exit_.code
    return 0


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail with one line on standard error, and returns the line."""
    code = run(arguments, monkeypatch)
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert code == 2 and printed.out == "" and len(lines) == 1 and lines[0].startswith("error: "), printed.err
    return lines[0]
