"""Commands of the documents, planned and not run."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.commands import single_cli, transfer_cli
from flows.planning.plan import make_plan
from flows.settings import Settings


class Planned(Exception):  # noqa: N818
    """What a command would have run."""


def planner(monkeypatch: pytest.MonkeyPatch, home: Path) -> Callable[[str], Any]:
    """Gives a function from a command line to its plan."""
    settings = Settings(home=home, device="cpu")

    def check_only(_given: dict[str, Any], work: object, check: Callable[[Settings], Any]) -> None:
        raise Planned(check(settings))

    def plan_only(config: Any, _settings: dict[str, Any], _as_json: bool, _anew: bool = False) -> None:
        raise Planned(make_plan(config, settings))

    monkeypatch.setattr(single_cli, "run_flow", check_only)
    monkeypatch.setattr(transfer_cli, "run_transfer", plan_only)

    def run(command: str) -> Any:
        with pytest.raises(Planned) as caught:
            cli.app(shlex.split(command)[1:], standalone_mode=False)
        return caught.value.args[0]

    return run
