"""The example of pairs in docs/real.md: its three commands, planned on tiny encoders in the place of the real ones."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from bico.models.loading import load, resolve
from flows.planning.plan import Plan
from flows.single import FinetunePlan, Subject
from tests.planned import planner
from tests.tiny_encoder import write_encoder
from tests.tiny_pairs import write_pairs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "real.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Plans a command where the page's folders are, and does no more."""
    monkeypatch.chdir(tmp_path)
    write_encoder(tmp_path / "out/real-models/all-MiniLM-L6-v2", 1)
    write_encoder(tmp_path / "out/real-models/all-mpnet-base-v2", 2, "mpnet", width=16)
    (tmp_path / "DATA").mkdir()
    write_pairs(tmp_path / "DATA" / "faq", scored=False, train=110)
    return planner(monkeypatch, tmp_path / "home")


def test_the_example_of_pairs_plans_what_the_page_says(planned: Callable[[str], Any], tmp_path: Path) -> None:
    (block,) = (block for block in BLOCKS if "--loss pairs" in block)
    tuning, carrying, measuring = block.replace("\\\n", " ").splitlines()
    tuned: FinetunePlan = planned(tuning)
    assert tuned.out == tmp_path / "faq.safetensors" and tuned.subject.tasks["faq"].loss == "pairs"
    state = load(resolve(str(tmp_path / "out/real-models/all-MiniLM-L6-v2"))).state()
    save_file({name: 1.01 * tensor.contiguous() for name, tensor in state.items()}, tuned.out)
    plan: Plan = planned(carrying)
    assert plan.loss == "pairs" and not plan.probed and plan.measured_by == "recall@1"
    assert plan.config.samples == [50, 100] and "bico" in map(str, plan.methods)
    assert all(variant.steps == () or str(spec) == "none+tune:steps=30" for spec, variant in plan.methods.items())
    measured: Subject = planned(measuring)
    assert measured.tasks["faq"].open().open("test").example(0).first
