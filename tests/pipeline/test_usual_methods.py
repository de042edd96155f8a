"""What a plan does with methods that nobody asked for by name, and with files of settings that are odd."""

from pathlib import Path
from typing import Any

import pytest

from bico.errors import ConfigError, MethodError
from flows.config import TransferConfig, read_config
from flows.planning.plan import Plan, make_plan
from flows.settings import Settings


def plan_of(home: Path, target: str, **more: Any) -> Plan:
    asked = {"source": "zoo:mini-a", "target": target, "tasks": ["digits"], "samples": [10], "out": home / "out"}
    return make_plan(TransferConfig(**asked, baselines=False, **more), Settings(home=home))


def test_usual_methods_that_cannot_serve_a_pair_are_left_out_aloud(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "zoo:mini-l")
    assert [str(spec) for spec in plan.methods] == ["bico", "theseus"]
    assert plan.notes[0].startswith(
        "naive is left out of the usual methods, which were not asked for by name: naive needs"
    )
    with pytest.raises(MethodError, match="naive needs two models of one architecture"):
        plan_of(tmp_path, "zoo:mini-l", methods=["bico", "theseus", "naive"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"out: caf\xe9", r"cannot be read as YAML: 'utf-8' codec"),
        (b"1: 2", "the key 1 is no text"),
    ],
)
def test_odd_files_of_settings_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_config(tmp_path / "c.yaml", {})


def test_yes_and_no_are_names_of_classes_in_settings_too(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("source: a\ntarget: b\ntasks: [t]\noracle: no\nclass_names: {0: no, 1: yes}\n")
    config = read_config(tmp_path / "c.yaml", {})
    assert config.class_names == ["0=no", "1=yes"] and config.oracle is False
