"""The study's pages say what was measured: planted numbers come out as they were planted."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.beyond.averages import average, axis_values, comparable
from benchmarks.beyond.ideas import BICO
from benchmarks.beyond.measured import Line, MeasuredCell, Regime, append, read_cells
from benchmarks.beyond.plot import plot
from benchmarks.beyond.questions import QUESTIONS
from benchmarks.beyond.setting import Setting
from benchmarks.beyond.table import advice, by_task, gain_table, in_short, middle, page, prediction
from bico.calibration.budget import Budget
from tests.rows import spec

SETTING = Setting("mini-a", "mini-b", "digits", 100, 0, 0, 100, 500)
ZERO, FINE = Regime(spec("zero-shot")), Regime(spec("fine-tuned"))
BOTH = Budget(100, 500)


def test_values_of_an_axis_come_in_their_order() -> None:
    def cells(axis: str, values: list) -> list[MeasuredCell]:
        return [MeasuredCell(replace(SETTING, **{axis: value}), {}, {}) for value in values]

    assert axis_values("unlabelled", cells("unlabelled", [2000, 0, 100])) == ["0", "100", "2000"]
    found = axis_values("target", cells("target", ["mini-b-1000", "mini-l", "mini-b", "mini-b-250"]))
    assert found == [f"mini-a → mini-{name}" for name in ("b-250", "b-1000", "b", "l")]


def test_averages_are_over_the_same_tasks_at_every_value() -> None:
    """A small task that was not measured at the last value is left out there, and only there."""
    measured_at = {"digits": (0, 100), "mnist": (0, 100, 2000), "gtsrb": (0, 100, 2000)}
    cells = [
        MeasuredCell(replace(SETTING, task=task, unlabelled=u), {Regime(BICO, Budget(100, u)): 50.0}, {})
        for task, counts in measured_at.items()
        for u in counts
    ]
    parts = comparable("unlabelled", cells)
    assert list(parts) == ["All tasks", "Only mnist, gtsrb"]
    assert axis_values("unlabelled", parts["All tasks"]) == ["0", "100"]
    assert axis_values("unlabelled", parts["Only mnist, gtsrb"]) == ["0", "100", "2000"]
    assert list(comparable("unlabelled", parts["All tasks"])) == ["All tasks"]


def test_a_page_says_what_was_measured(tmp_path: Path) -> None:
    """Planted numbers: BiCo closes half of each gap, its head 80 %, the head alone 60 %."""
    lines: list[Line] = []
    for task, (zero, fine) in {"digits": (50.0, 90.0), "lamps": (20.0, 80.0), "gtsrb": (40.0, 60.0)}.items():
        for seed in (0, 1):
            setting, gap = replace(SETTING, task=task, seed=seed), fine - zero
            lines += [Line(setting, ZERO, zero), Line(setting, FINE, fine)]
            for name, share in {"bico": 0.5, "bico+head": 0.8, "none+head": 0.6}.items():
                lines.append(Line(setting, Regime(spec(name), BOTH), zero + share * gap, share * gap))
    append(tmp_path / "cells.csv", lines)
    cells = read_cells(tmp_path / "cells.csv")
    told = {line.split("|")[1].strip(): line for line in in_short(cells).splitlines()}
    assert told["BiCo + head"].endswith("| 80 % | 80 % | 1.60 | +8.0 ± 5.7 | 2/2 |")  # 12 and 4 points
    assert told["no transport + head"].endswith("| 60 % | 60 % | 1.20 |  |  |")
    assert [line.split("|")[1].strip() for line in by_task(cells, Regime(BICO, BOTH)).splitlines()[4:]] == [
        "lamps", "gtsrb", "digits"]  # fmt: skip
    assert "BiCo + head (100 labels, 500 unlabelled): 62.0 ± 0.0 %" in page("regimes", cells)
    assert all("ρ = 1.00" in line for line in prediction(cells))
    assert average(cells, BICO) == [pytest.approx(170 / 3)] * 2
    (gains,) = gain_table("unlabelled", cells).splitlines()[2:]  # only the head has a control: 8, 12 and 4 points
    assert gains == "| BiCo + head | +8.0 ± 4.0 (3/3) |"
    figure = plot("unlabelled", cells)
    assert len(figure.axes[0].get_lines()) >= 3 and figure.axes[0].get_ylabel().startswith("test accuracy")


def test_an_idea_counts_as_a_transfer() -> None:
    """The library does not know the study's ideas; the advice has to be told."""
    accuracy = {ZERO: 40.0, FINE: 90.0, Regime(BICO, BOTH): 60.0, Regime(spec("none+head"), BOTH): 50.0}
    cells = [
        MeasuredCell(replace(SETTING, seed=seed), accuracy | {Regime(spec("bico-halves"), BOTH): 70.0 + seed}, {})
        for seed in (0, 1)
    ]
    (said,) = advice(cells).splitlines()
    assert "the best transfer was bico-halves (100 labels, 500 unlabelled): 70.5" in said
    assert "It beats the best without it (no transport + head" in said


def test_the_middle_of_an_axis_is_what_the_regimes_have_of_its_recipes() -> None:
    asked, other = replace(SETTING, strength=10), replace(SETTING, seed=1)
    regimes = [ZERO, Regime(BICO, Budget(100)), Regime(BICO, BOTH), Regime(BICO, Budget(0, 500))]
    regimes += [Regime(spec("none+head:targets=labels"), Budget(100)), Regime(spec("bico+tune:steps=30"), BOTH)]
    measured = [MeasuredCell(setting, dict.fromkeys(regimes, 50.0), {}) for setting in (SETTING, other)]
    (cell,) = middle(QUESTIONS["strength"], [MeasuredCell(asked, {}, {})], measured)
    assert cell.setting == SETTING  # the other draw was not asked for
    # what looks at no unlabelled inputs counts with the labels alone
    assert list(cell.accuracy) == [ZERO, Regime(BICO, BOTH), Regime(spec("none+head:targets=labels"), Budget(100))]
