"""The timed benchmarks, on tiny models: that they run, and that what they compare agrees."""

import importlib
from pathlib import Path

import pytest


def printed(name: str, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, *arguments.split()])
    module.main()
    return capsys.readouterr().out


def cells(text: str, start: str) -> list[str]:
    """The cells behind the first one, of the line whose first cell this is."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_transfer_beside_its_reference(
    clock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed(
        "transfer", f"--pair tiny --samples 2,4 --repeats 1 --reference --clock {clock}", monkeypatch, capsys
    )
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## N = 2", "## N = 4"]
    for phase in ("collect", "maps", "apply"):
        ours, _, reference, ratio = cells(text, phase)
        assert float(ours) >= 0 and float(reference) >= 0 and float(ratio) > 0
    assert "Floor: bare passes" in text


def test_a_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("transfer", "--pair tiny --samples 2,4 --repeats 1 --sweep", monkeypatch, capsys)
    assert "One pass for N = 2, 4" in text and "## N" not in text


def test_solvers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("solver", "--sizes 200,40x24 --repeats 1", monkeypatch, capsys)
    for size in ("200", "40x24"):
        for kind in ("full", "decay", "low rank"):
            *_, gram, _, _, iteration = cells(text, f"{size} {kind}")
            assert float(gram) < 1e-5 and float(iteration) < 1e-5
        assert all(float(ms) > 0 for ms in cells(text, size))


def test_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("store", f"--pair tiny --repeats 1 --folder {tmp_path}", monkeypatch, capsys)
    assert [float(cell) > 0 for cell in cells(text, "ratio")[:2]] == [True, True]
    assert not list(tmp_path.iterdir())


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed("scaling", "--samples 2,4 --widths 64,128 --depths 1,2 --repeats 1", monkeypatch, capsys)
    for number in ("samples", "widths", "depths"):
        assert len(cells(text, number)) == 3
    # counted operations of solving: none more for samples, the cube of the width, and a little less than depth
    counted = [float(cells(text, n)[1].split(" / ")[1]) for n in ("samples", "widths", "depths")]
    assert counted[0] == 0 and 2.9 < counted[1] < 3.1 and 0.9 < counted[2] < 1.01
