"""docs/your-own-model.md does what it says, for more seeds than the one it shows."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bico.calibration.signals import SignalKey
from bico.linalg.procrustes import AlignmentMap, MapRule
from bico.methods import Gathered

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-own-model.md").read_text()
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
(PRINTED,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


def percents(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+) +(\d+) %", text)}


def run(seed: int, capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    assert CODE.count("torch.manual_seed(0)") == 1
    exec(compile(CODE.replace("manual_seed(0)", f"manual_seed({seed})"), "your-own-model.md", "exec"), {})
    return percents(capsys.readouterr().out)


@contextmanager
def random_maps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every map is a random one of the same shape with orthonormal rows or columns."""

    def strange(self: Gathered, key: SignalKey, _rule: MapRule) -> AlignmentMap:
        kept = min(self.covariances[key].shape)
        left, right = (torch.linalg.qr(torch.randn(features, kept))[0] for features in self.covariances[key].shape)
        return AlignmentMap(left, right, kept, torch.ones(kept))

    with monkeypatch.context() as patch:
        patch.setattr(Gathered, "map", strange)
        yield


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expert_arrives(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run(seed, capsys)
    assert found["expert"] > 90
    assert found["updated"] > found["untouched"] + 20
    assert (tmp_path / "wide-updated.pt").is_file()
    if seed == 0:  # what the page prints, but for how another processor rounds while it trains
        assert found == pytest.approx(percents(PRINTED), abs=6)
    with random_maps(monkeypatch):
        wrong = run(seed, capsys)
    assert wrong["updated"] < wrong["untouched"] + 5


def test_the_page_is_short_and_needs_the_core_alone() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) <= 42
    imported = set(re.findall(r"^(?:import|from) (\w+)", CODE, re.MULTILINE))
    assert imported == {"copy", "torch", "bico"}
