"""What a report advises: the truth either way, from rows made up to have one."""

import pytest
import torch

from bico.calibration.budget import Budget
from bico.reporting.advice import Gain, budgets_of, candidates, recommend, recommendations
from bico.reporting.baselines import baselines
from bico.reporting.plots import plot_accuracy
from bico.reporting.rows import Row
from bico.reporting.tables import markdown_table
from tests.rows import row, spec

NOISE = (-1.0, 0.0, 1.0)


def drawn(method: str, mean: float, samples: int = 100, unlabelled: int = 0, noise: tuple = NOISE) -> list[Row]:
    """Two tasks, one 10 points above the mean and one below; three seeds that share their luck."""
    return [
        row(task, method, samples, seed, mean + offset + luck, unlabelled)
        for task, offset in (("a", 10.0), ("b", -10.0))
        for seed, luck in enumerate(noise)
    ]


ZERO = [row("a", "zero-shot", 0, None, 30.0), row("b", "zero-shot", 0, None, 20.0)]
FINE = [row("a", "fine-tuned", 0, None, 99.0), row("b", "fine-tuned", 0, None, 98.0)]


def test_a_transfer_that_wins_is_said_to_win_by_the_paired_difference() -> None:
    rows = [*ZERO, *FINE, *drawn("bico", 60), *drawn("none+head", 57), *drawn("few-shot", 40)]
    assert recommend(rows, Budget(100)) == (
        "With 100 labels the best transfer was BiCo (100 labels): 60.0 ± 1.0 %. It beats the target as it is (25.0 %), "
        "by +35.0 ± 7.1 points over 2 tasks. It beats the best without it (no transport + head (100 labels): 57.0 ± 1.0 "
        "%), by +3.0 ± 0.0 points over 2 tasks."
    )


def test_a_transfer_that_loses_is_not_worth_it() -> None:
    rows = [*ZERO, *drawn("bico", 50), *drawn("none+head:targets=labels", 57)]
    assert "The transfer is not worth it here: the best without it (no transport + head of labels" in recommend(
        rows, Budget(100)
    )
    assert "is better, by +7.0 ± 0.0 points over 2 tasks" in recommend(rows, Budget(100))


def test_a_difference_on_which_the_tasks_disagree_is_open_however_well_the_seeds_agree() -> None:
    """Seeds of one task share the expert, the models and the test pictures."""
    worse = [row(task, "none+head", 100, seed, 40.0 + (task == "a") * 29) for task in "ab" for seed in range(3)]
    better = [row(task, "bico", 100, seed, 50.0 + (task == "a") * 20) for task in "ab" for seed in range(3)]
    assert "Whether it is better than the best without it" in recommend([*ZERO, *worse, *better], Budget(100))
    assert "is open: +5.5 ± 6.4 points over 2 tasks" in recommend([*ZERO, *worse, *better], Budget(100))


def of_one_task(*methods: tuple[str, tuple[float, ...]], zero: float = 80.0) -> list[Row]:
    named = [row("a", method, 100, seed, x) for method, values in methods for seed, x in enumerate(values)]
    return [row("a", "zero-shot", 0, None, zero), *named]


def test_of_one_task_draws_are_what_is_tested() -> None:
    said = recommend(of_one_task(("bico", (90.0, 91.0, 90.5)), ("few-shot", (81.0, 82.0, 81.4))), Budget(100))
    assert "It beats the target as it is (80.0 %), by +10.5 ± 0.5 points over 3 draws." in said
    assert "It beats the best without it (few-shot (one step) (100 labels): 81.5 ± 0.5 %), by +9.0" in said
    noisy = recommend(of_one_task(("bico", (84.0, 91.0, 77.0)), ("few-shot", (81.0, 82.0, 81.4))), Budget(100))
    assert "beats" not in noisy and noisy.count("is open") == 2


def test_one_draw_of_one_task_has_no_spread_and_no_verdict() -> None:
    said = recommend(of_one_task(("bico", (90.0,)), ("few-shot", (81.0,))), Budget(100))
    assert "±" not in said and "beats" not in said
    assert said.count("is open") == 2 and "+9.0 points on one task with one draw, which allows no test" in said


def test_a_target_that_is_better_untouched_is_told_whatever_else_was_measured() -> None:
    said = recommend(of_one_task(("bico", (61.0, 60.0, 62.0))), Budget(100))
    assert said.startswith("With 100 labels nothing beats the target as it is (80.0 %): the best transfer was BiCo")
    assert "The transfer is not worth it here: the target as it is (80.0 %) is better, by +19.0 ± 1.0 points" in said
    rival = recommend(of_one_task(("bico", (61.0, 60.0, 62.0)), ("few-shot", (81.0, 85.0, 83.0))), Budget(100))
    assert "the target as it is (80.0 %) is better" in rival and "few-shot (one step) (100 labels)" in rival


def test_seeds_that_agree_by_chance_on_a_coarse_measure_prove_nothing() -> None:
    """Of twenty test samples, one more is right both times."""
    said = recommend(of_one_task(("bico", (85.0, 90.0)), ("few-shot", (80.0, 85.0)), zero=50.0), Budget(100))
    assert "Whether it is better than the best without it" in said


def false_alarms(units: int, transfers: int, others: int, picked_from: int, runs: int = 3000) -> float:
    """How often the best of some transfers is said to beat the best of others, where all have one truth: accuracies on
    200 samples each, on tasks (or in draws) with a difficulty of their own.
    """
    generator = torch.Generator().manual_seed(units * 100 + transfers * 10 + others)
    hard = 0.5 + 0.4 * torch.rand(runs, 1, units, generator=generator)
    right = [
        torch.binomial(torch.full((runs, n, units), 200.0), hard.expand(runs, n, units), generator=generator) / 2
        for n in (transfers, others)
    ]
    best, other = (side[torch.arange(runs), side.mean(2).argmax(1)] for side in right)
    gains = [tuple(values) for values in (best - other).tolist() if sum(values) > 0]
    return sum(Gain(values, "tasks", 0.0).is_certain(picked_from) for values in gains) / runs


ALLOWED = 0.05 + 2.5 * (0.05 * 0.95 / 3000) ** 0.5
"""Five in a hundred, and what chance adds to it in a simulation of this size."""


@pytest.mark.parametrize("units", [2, 3, 5])
@pytest.mark.parametrize(("transfers", "others"), [(1, 1), (3, 1), (2, 4)])
def test_where_nothing_is_better_it_is_said_to_be_in_one_run_of_twenty_at_most(
    units: int, transfers: int, others: int
) -> None:
    assert false_alarms(units, transfers, others, picked_from=transfers) <= ALLOWED


def test_the_best_of_many_would_be_said_to_win_too_often_if_it_were_tested_like_one() -> None:
    assert false_alarms(5, 4, 1, picked_from=1) > 2 * ALLOWED


def test_nothing_beats_the_target_as_it_is() -> None:
    rows = [*ZERO, *drawn("bico", 20), *drawn("few-shot", 19)]
    assert recommend(rows, Budget(100)).startswith("With 100 labels nothing beats the target as it is (25.0 %)")


def test_a_regime_may_use_less_than_it_has_but_not_more() -> None:
    rows = [*ZERO, *drawn("bico", 60), *drawn("bico", 70, unlabelled=500), *drawn("bico", 90, samples=300)]
    rows += [row(task, "naive", 0, None, 22.0) for task in "ab"]
    assert {(str(c.method), c.budget.asked, c.budget.unlabelled) for c in candidates(rows, Budget(100, 500))} == {
        ("zero-shot", 0, 0), ("naive", 0, 0), ("bico", 100, 0), ("bico", 100, 500)
    }  # fmt: skip
    assert "With 100 labels and 500 unlabelled inputs the best transfer was BiCo (100 labels, 500 unlabelled)" in (
        recommend(rows, Budget(100, 500))
    )
    assert "whether it is worth it is open" in recommend(rows, Budget(100))
    assert "No" not in recommend([*ZERO, *FINE], Budget(100)) and "no transfer was measured" in recommend(
        ZERO, Budget(100)
    )
    assert budgets_of(rows) == [Budget(100), Budget(100, 500), Budget(300)]
    assert len(recommendations(rows)) == 1  # of the regimes with what there is unlabelled


def test_what_lacks_a_task_or_a_seed_is_no_candidate() -> None:
    partial = [r for r in drawn("none+head", 99) if r.task == "a"]
    short = [r for r in drawn("few-shot", 99) if r.seed]
    found = {str(c.method) for c in candidates([*ZERO, *drawn("bico", 60), *partial, *short], Budget(100))}
    assert found == {"zero-shot", "bico"}


def test_a_head_is_told_apart_from_what_keeps_the_vocabulary() -> None:
    rows = [*ZERO, *drawn("bico+head", 70), *drawn("bico+projection", 65), *drawn("none+head", 60)]
    assert recommend(rows, Budget(100)).endswith(
        "Of transfers that keep the open vocabulary the best was BiCo + projection (100 labels): 65.0 ± 1.0 %."
    )


def test_a_head_alone_is_advised_on_without_a_word_about_vocabularies() -> None:
    said = recommend([*ZERO, *drawn("bico+head", 70)], Budget(100))
    assert said.startswith("With 100 labels the best transfer was BiCo + head (100 labels): 70.0 ± 1.0 %.")
    assert "vocabulary" not in said


def test_baselines_are_added_once() -> None:
    def named(*methods: str) -> list[str]:
        return [str(found) for found in baselines(map(spec, methods))]

    assert named("bico")[:2] == ["none+head:targets=labels", "none+head:targets=labels:fit=logistic"]
    found = named("bico+projection", "theseus+projection", "few-shot", "none+head")
    assert found.count("none+projection") == 1 and not {"few-shot", "none+head"} & set(found)


def test_unlabelled_inputs_show_in_table_plot_and_labels() -> None:
    rows = [*ZERO, *drawn("bico", 60), *drawn("bico", 70, unlabelled=500)]
    table = markdown_table(rows).splitlines()
    assert table[0].startswith("| method | N | unlabelled | a |") and table[1].count("---") == table[0].count("|") - 1
    assert table[3].startswith("| BiCo | 100 | – |") and table[4].startswith("| BiCo | 100 | 500 | 80.0 ± 1.0 |")
    assert rows[-1].label == "b/bico/N=100/U=500/seed=2" and "unlabelled" not in markdown_table(rows[:8])
    assert "BiCo, 500 unlabelled" in {t.get_text() for t in plot_accuracy(rows).get_legend().get_texts()}


@pytest.mark.parametrize("unlabelled", [0, 500])
def test_headlines_speak_of_labels_only(unlabelled: int) -> None:
    from bico.reporting.tables import headlines

    assert bool(headlines([*ZERO, *drawn("bico", 60, unlabelled=unlabelled)])) is not bool(unlabelled)
