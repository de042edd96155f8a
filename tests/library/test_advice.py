"""What a report advises: the truth either way, from rows made up to have one."""

import pytest

from bico.calibration.budget import Budget
from bico.reporting.advice import budgets_of, candidates, recommend, recommendations
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
        "With 100 labels the best transfer was BiCo (100 labels): 60.0 ± 1.0 %. It beats the best without it, no transport "
        "+ head (100 labels): 57.0 ± 1.0 %, by +3.0 ± 0.0 points."
    )


def test_a_transfer_that_loses_is_not_worth_it() -> None:
    rows = [*ZERO, *drawn("bico", 50), *drawn("none+head:targets=labels", 57)]
    assert "The transfer is not worth it here: the best without it, no transport + head of labels" in recommend(
        rows, Budget(100)
    )
    assert "is better by +7.0 ± 0.0 points" in recommend(rows, Budget(100))


def test_a_difference_within_the_spread_is_left_open() -> None:
    """The same means as in a win, but the seeds disagree."""
    rows = [*ZERO, *drawn("bico", 60), *drawn("none+head", 59, noise=(3.0, 0.0, -3.0))]
    assert "is open: the best without it" in recommend(rows, Budget(100)) and "(+1.0 ± 4.0 points)" in recommend(
        rows, Budget(100)
    )
    assert "is open" in recommend(
        [r for r in [*ZERO, *drawn("bico", 60), *drawn("few-shot", 9)] if not r.seed], Budget(100)
    )


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
    assert "whether the transfer is worth it is open" in recommend(rows, Budget(100))
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
