import pytest
import torch

from bico.errors import ShapeError
from bico.evaluation.accuracy import accuracy
from bico.methods import METHODS
from bico.models.clip.vit import ClipViT
from bico.reporting.advice import advice
from bico.reporting.names import colour_of, label_of
from bico.reporting.plots import plot_accuracy
from bico.reporting.references import doubts
from bico.reporting.rows import Row, summarise
from bico.reporting.tables import headlines, markdown_table, spread_note
from tests.rows import row, spec
from tests.tiny import head, pictures

ROWS = [
    row("a", "zero-shot", 0, None, 10.0),
    row("b", "zero-shot", 0, None, 30.0),
    row("a", "bico", 50, 0, 40.0),
    row("b", "bico", 50, 0, 60.0),
    row("a", "bico", 50, 1, 44.0),
    row("b", "bico", 50, 1, 60.0),
]


def test_spreads_are_over_seeds_and_averages_over_tasks_first() -> None:
    zero, bico = summarise(ROWS)
    assert zero.average == (20.0, None)
    assert bico.per_task["a"] == pytest.approx((42.0, 8**0.5))  # sd of 40 and 44, n - 1
    assert bico.per_task["b"] == (60.0, 0.0)
    assert bico.average == pytest.approx((51.0, 2**0.5))  # the averages of the two seeds are 50 and 52
    assert bico.seeds == 2


def test_the_table_tells_mean_spread_and_gain() -> None:
    table = markdown_table(ROWS).splitlines()
    assert table[2] == "| zero-shot | – | 10.0 | 30.0 | 20.0 |  |"
    assert table[3] == "| BiCo | 50 | 42.0 ± 2.8 | 60.0 ± 0.0 | 51.0 ± 1.4 | +31.0 |"


def test_further_columns_stand_beside_their_rows() -> None:
    table = markdown_table(ROWS, {"paper": {(spec("bico"), 50): "76.54", (spec("theseus"), 50): "61.47"}}).splitlines()
    assert table[0].endswith("| over zero-shot | paper |") and table[1].count("---") == table[0].count("|") - 1
    assert table[2].endswith("| 20.0 |  |  |") and table[3].endswith("| +31.0 | 76.54 |")


def test_headlines_are_differences_at_the_largest_n() -> None:
    more = [row("a", "bico", 10, 0, 0.0), row("a", "fine-tuned", 0, None, 80.0), row("b", "fine-tuned", 0, None, 84.0)]
    naive = [row(task, "naive", 0, None, 19.0) for task in "ab"]
    assert headlines([*ROWS, *more, *naive]) == [
        "- N=50: BiCo − zero-shot = +31.0 ± 1.4 points",
        "- N=50: BiCo − naive = +32.0 points",
        "- N=50: 50 % of the gap to the fine-tuned target is closed",
    ]
    assert headlines(ROWS[:2]) == [] == headlines(ROWS[2:])


def test_the_plot_shows_what_the_rows_say() -> None:
    ax = plot_accuracy(ROWS)
    (line,) = [container.lines[0] for container in ax.containers]
    assert line.get_xdata().tolist() == [50] and line.get_ydata() == pytest.approx([51.0])
    dots = ax.collections[-1].get_offsets()
    assert sorted(dots[:, 1]) == [50.0, 52.0]
    assert "20.0" in ax.get_legend().get_texts()[0].get_text()


def test_accuracy_counts_the_labels_that_score_highest(source: ClipViT) -> None:
    images, classes = pictures(10), head(source)
    right = source.logits(images, classes).argmax(1)
    labels = right.clone()
    labels[:3] = (right[:3] + 1) % 5
    assert accuracy(source, [(images[:4], labels[:4]), (images[4:], labels[4:])], classes) == 70.0


def test_nothing_to_evaluate_is_an_error(source: ClipViT) -> None:
    with pytest.raises(ShapeError, match="no samples"):
        accuracy(source, [], torch.zeros(5, 8))


def test_every_method_has_a_colour_of_its_own_and_variants_share_it() -> None:
    assert len({colour_of(spec(name)) for name in METHODS}) == len(METHODS)
    variants = [row("a", method, 50, 0, 40.0) for method in ("bico", "bico:completion=svd")]
    lines = [container.lines[0] for container in plot_accuracy(variants).containers]
    assert lines[0].get_color() == lines[1].get_color() == METHODS["bico"].colour
    assert lines[0].get_marker() != lines[1].get_marker() and lines[0].get_linestyle() != lines[1].get_linestyle()
    assert [line.get_label() for line in plot_accuracy(variants).containers] == ["BiCo", "BiCo, completion svd"]


def test_labels_tell_variants_apart() -> None:
    assert label_of(spec("few-shot:lr=5e-4")) == "few-shot (one step), lr 5e-4"
    assert len({label_of(spec(m)) for m in [*METHODS, "gradfix:mask=force"]}) == len(METHODS) + 1


def test_a_row_comes_back_from_csv_with_all_it_has() -> None:
    kept = row("digits", "bico+head", 20, 1, 61.5, 500)
    record = {key: str(value) for key, value in kept.record().items()}
    assert Row.parse(record) == kept
    older = {key: value for key, value in record.items() if key != "unlabelled"} | {"seed": ""}
    assert Row.parse(older) == row("digits", "bico+head", 20, None, 61.5)
    with pytest.raises(ValueError, match="could not convert"):
        Row.parse(record | {"accuracy": "high"})


def test_an_expert_without_skill_is_doubted() -> None:
    rows = [row("digits", "source", 0, None, 70.0), row("digits", "expert", 0, None, 70.0)]
    rows += [row("lamps", "source", 0, None, 70.0), row("lamps", "expert", 0, None, 70.5)]
    assert [said[:44] for said in doubts(rows)] == ["The expert scores 70.0 % on digits, where it"]
    assert advice(rows)[0] == doubts(rows)[0]
    assert doubts(rows[1:2]) == []  # an expert that was made here has no such row beside it


def test_one_seed_has_no_spread_wherever_rows_are_shown() -> None:
    alone = [r for r in ROWS if not r.seed]
    assert "±" not in markdown_table(alone) + "".join(headlines(alone)) + spread_note(alone)
    assert summarise(alone)[1].average == (50.0, None) and str(summarise(alone)[1].average) == "50.0"
    assert bars_of(alone) == 0 and bars_of(ROWS) == 1


def bars_of(rows: list[Row]) -> int:
    """How many error bars the plot has."""
    (drawn,) = plot_accuracy(rows).containers
    return sum(len(segment) > 0 for segment in drawn.lines[2][0].get_segments())


def test_a_task_with_one_seed_has_no_spread_beside_one_with_two() -> None:
    rows = [*ROWS[:4], ROWS[4]]  # a has seeds 0 and 1, b has seed 0
    assert "| 42.0 ± 2.8 | 60.0 | 47.0 ± 4.2 |" in markdown_table(rows).splitlines()[3]
    assert spread_note(rows) == ", mean ± sd over the calibration seeds"
