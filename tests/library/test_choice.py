"""The model to write: which rows judge, which cell wins, and what is said where none is worth it."""

import pytest
import torch

from bico.calibration.sampling import draw_samples
from bico.errors import CalibrationError, ConfigError
from bico.evaluation.held_out import FEWEST, ROWS, cross_validated, hold_out
from bico.reporting.choice import Choice, Judged, choose
from tests.rows import row


def test_rows_that_judge_are_those_that_nothing_learnt_from() -> None:
    taken = draw_samples(1000, 100, seed=0).tolist()
    held = hold_out(1000, taken)
    assert held.unseen and len(held.rows) == len(set(held.rows)) == ROWS and not set(held.rows) & set(taken)
    assert held == hold_out(1000, reversed(taken))  # the same for every cell
    assert not hold_out(100, range(60)).unseen and set(hold_out(100, range(60)).rows) == set(range(60))
    assert hold_out(100, range(40)).unseen and len(hold_out(100, range(40)).rows) == 60
    assert hold_out(FEWEST - 1, []).unseen  # few, but nothing else is there
    with pytest.raises(CalibrationError, match="holds no samples"):
        hold_out(0, [])


def test_a_cross_validated_probe_sees_no_label_that_it_is_judged_by() -> None:
    torch.manual_seed(0)
    labels = (torch.arange(80) % 4)[torch.randperm(80)]  # held-out rows come in random order
    signal = torch.eye(4)[labels] + 0.1 * torch.randn(80, 4)
    assert cross_validated(signal, labels, 4) == 100
    # With as many features as samples a probe that had seen the labels would be right throughout.
    assert cross_validated(torch.randn(80, 80), labels, 4) < 50
    with pytest.raises(CalibrationError, match="by 3 samples"):
        cross_validated(signal[:3], labels[:3], 4)


def judged(method: str, samples: int, score: float, start: float = 50.0) -> Judged:
    return Judged(row("digits", method, samples, 0 if samples else None, 0.0).cell, score, start)


def test_the_best_by_held_out_samples_is_chosen_and_equals_go_to_the_more_useful() -> None:
    cells = [
        judged("bico+head", 100, 70.0),
        judged("bico", 10, 70.0),
        judged("bico", 100, 70.0),
        judged("naive", 0, 60),
    ]
    assert str(choose(cells, "x").cell.method) == "bico" and choose(cells, "x").cell.budget.asked == 100
    assert choose([*cells, judged("none+head", 100, 71.0)], "x").cell.method.name == "none"
    assert choose([judged("none+tune", 9, 60.0), judged("naive", 0, 60.0)], "x").cell.method.name == "naive"
    with pytest.raises(ConfigError, match="no model to choose from"):
        choose([], "x")


def test_a_model_that_is_no_better_than_the_target_is_told_loudly() -> None:
    better = choose([judged("bico", 100, 70.0)], "250 training samples")
    assert better.gains and "WARNING" not in better.sentence
    assert "70.0 % against 50.0 % of the target as it is, by 250 training samples" in better.sentence
    assert "carries nothing of the expert" in choose([judged("few-shot", 9, 70.0)], "x").sentence
    for score in (49.0, 50.0):
        worse = choose([judged("bico", 100, score)], "x")
        assert not worse.gains and worse.sentence.startswith("WARNING") and "Use the target itself" in worse.sentence
    assert Choice.parse(better.to_json()) == better
