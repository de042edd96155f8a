"""Claims on synthetic rows: every verdict occurs, and what is no difference is not found to be one."""

import math
import random
from pathlib import Path

import pytest
import scipy.stats

from bico.errors import ConfigError
from bico.reporting.claims import Kind, Outcome, Verdict, differences, evaluate
from bico.reporting.rows import Row
from flows.catalogue import Catalogue, Side, read_catalogue
from flows.claims import render
from flows.recipes import read_recipe
from flows.validation import validated
from tests.rows import row

TASKS = ["a", "b", "c", "d", "e", "f", "g"]


def rows(method: str, gain: dict[str, float] | float, seeds: tuple = (0, 1, 2), noise: float = 0.0) -> list[Row]:
    """Accuracies around a level of each task's own, far larger than any gain."""
    rng, samples = random.Random(method), 0 if seeds == (None,) else 100
    gains = gain if isinstance(gain, dict) else dict.fromkeys(TASKS, gain)
    return [
        row(task, method, samples, seed, 20.0 + 9 * n + gains[task] + noise * rng.gauss(0, 1))
        for n, task in enumerate(TASKS)
        for seed in seeds
    ]


def verdict(left: list[Row], right: list[Row], kind: Kind = Kind.MORE, margin: float = 0.0) -> Outcome:
    return evaluate(differences(left, right), kind, margin)


ZERO = rows("zero-shot", 0.0, seeds=(None,))
BETTER = dict(zip(TASKS, [9.0, 4.0, 6.0, 2.0, 7.0, 3.0, 5.0], strict=True))
MIXED = dict(zip(TASKS, [9.0, -8.0, 6.0, -5.0, 1.0, -2.0, 3.0], strict=True))
SLIGHT = dict(zip(TASKS, [0.2, -0.1, 0.1, 0.3, -0.2, 0.0, 0.1], strict=True))


@pytest.mark.parametrize(
    ("gain", "kind", "margin", "expected"),
    [
        (BETTER, Kind.MORE, 0.0, Verdict.HELD),
        (BETTER, Kind.MORE, 4.5, Verdict.UNDECIDED),
        (BETTER, Kind.MORE, 9.0, Verdict.NOT_HELD),
        (MIXED, Kind.MORE, 0.0, Verdict.UNDECIDED),
        (SLIGHT, Kind.MORE, -0.5, Verdict.HELD),  # no worse than by half a point
        ({task: -gain for task, gain in BETTER.items()}, Kind.MORE, 0.0, Verdict.NOT_HELD),
        (SLIGHT, Kind.ALIKE, 1.0, Verdict.HELD),
        (MIXED, Kind.ALIKE, 1.0, Verdict.UNDECIDED),
        (BETTER, Kind.ALIKE, 1.0, Verdict.NOT_HELD),
        ({task: -gain for task, gain in BETTER.items()}, Kind.ALIKE, 1.0, Verdict.NOT_HELD),
    ],
)
def test_every_verdict(gain: dict[str, float], kind: Kind, margin: float, expected: Verdict) -> None:
    assert verdict(rows("bico", gain), ZERO, kind, margin).verdict is expected


def test_what_differs_by_chance_alone_is_seldom_found_to_be_more() -> None:
    """The negative control: two methods that do the same. The share of false alarms is the level of the test."""
    rng = random.Random(0)
    found = [
        evaluate({task: {None: rng.gauss(0, 3)} for task in TASKS}, Kind.MORE).verdict is Verdict.HELD
        for _ in range(1000)
    ]
    assert 0.03 < sum(found) / len(found) < 0.07


def test_more_seeds_of_the_same_tasks_make_no_more_evidence() -> None:
    """Were seeds taken for independent observations, thirty of them would make a chance difference certain."""
    few, many = (verdict(rows("bico", MIXED, seeds=tuple(range(n))), ZERO) for n in (1, 30))
    assert few.p == pytest.approx(many.p) and few.verdict is many.verdict is Verdict.UNDECIDED
    assert (few.seeds, many.seeds, few.tasks) == (1, 30, 7)


def test_the_numbers_are_scipys() -> None:
    outcome = verdict(rows("bico", MIXED, noise=1.0), rows("theseus", 0.0, noise=1.0))
    found = differences(rows("bico", MIXED, noise=1.0), rows("theseus", 0.0, noise=1.0))
    means = [sum(seeds.values()) / 3 for seeds in found.values()]
    expected = scipy.stats.ttest_1samp(means, 0, alternative="greater")
    assert outcome.p == pytest.approx(expected.pvalue)
    assert outcome.mean == pytest.approx(sum(means) / 7)
    assert outcome.in_favour == sum(mean > 0 for mean in means)


def test_sides_are_paired_by_task_and_seed() -> None:
    ours = [row("a", "bico", 10, seed, accuracy) for seed, accuracy in ((0, 50.0), (1, 70.0))]
    theirs = [row("a", "theseus", 10, seed, accuracy) for seed, accuracy in ((1, 60.0), (0, 45.0))]
    assert differences(ours, theirs) == {"a": {0: 5.0, 1: 10.0}}
    assert differences(ours, [row("a", "zero-shot", 0, None, 40.0)]) == {"a": {0: 10.0, 1: 30.0}}
    assert differences([row("a", "naive", 0, None, 39.0)], [row("a", "zero-shot", 0, None, 40.0)]) == {
        "a": {None: -1.0}
    }


def test_one_task_decides_nothing() -> None:
    outcome = verdict(rows("bico", BETTER)[:3], ZERO)
    assert outcome.verdict is Verdict.UNDECIDED and math.isnan(outcome.p) and outcome.mean == pytest.approx(9)


def test_tasks_that_all_agree_leave_nothing_to_chance() -> None:
    found = {task: {0: 2.0} for task in TASKS}
    assert evaluate(found, Kind.MORE).verdict is Verdict.HELD
    assert evaluate(found, Kind.MORE, 2.0).verdict is Verdict.UNDECIDED
    assert evaluate(found, Kind.ALIKE, 1.0).verdict is Verdict.NOT_HELD


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="one side has a, the other b"):
        differences([row("a", "bico", 1, 0, 1.0)], [row("b", "bico", 1, 0, 1.0)])
    with pytest.raises(ConfigError, match="Nothing to pair on a: seeds 0 on one side, 1 on the other"):
        differences([row("a", "bico", 1, 0, 1.0)], [row("a", "bico", 1, 1, 1.0)])
    with pytest.raises(ConfigError, match="margin above zero"):
        evaluate({"a": {0: 1.0}}, Kind.ALIKE)
    with pytest.raises(ConfigError, match="not finite"):
        evaluate({"a": {0: math.nan}}, Kind.MORE)


def test_a_side_finds_its_rows() -> None:
    made = {"table1": {"pair": [*ZERO, *rows("bico", 1.0), row("a", "bico", 10, 0, 1.0)]}, "tableB": {"x": [], "y": []}}
    assert Side(recipe="table1", method="bico").of(made) == rows("bico", 1.0)
    assert Side(recipe="table1", method="zero-shot").of(made) == ZERO
    assert len(Side(recipe="table1", method="bico", samples=10).of(made)) == 1
    with pytest.raises(ConfigError, match="no rows of bico at N=20; there are zero-shot at 0, bico at 100"):
        Side(recipe="table1", method="bico", samples=20).of(made)
    with pytest.raises(ConfigError, match=r"which transfer\? Valid: x, y"):
        Side(recipe="tableB", method="bico").of(made)


def test_every_claim_compares_rows_that_its_recipes_make() -> None:
    catalogue = read_catalogue()
    made: dict[str, dict[str, list[Row]]] = {}
    for name in catalogue.recipes:
        made[name] = {}
        recipe = read_recipe(name)
        for title, config in recipe.configs(mini=recipe.shows == "picture").items():
            made[name][title] = [
                row("digits", method, n, None, 50.0)
                for method in [*config.methods, *BASES[recipe.shows]]
                for n in (config.samples if method not in UNCALIBRATED else [0])
            ]
    for claim in catalogue.claims:
        assert claim.left.of(made) and claim.right.of(made), claim.id
    assert catalogue.claims[0].group and len(catalogue.claims) > 30


BASES = {"picture": ["zero-shot"], "text": ["target-probe", "source-probe"]}


def test_claims_without_tasks_at_hand_are_left_out_by_name() -> None:
    served, without = read_catalogue().at_hand(mini=True, data=[])
    assert "table2" not in served.recipes and "table5" in served.recipes and served.norms
    assert all(name.startswith("language-") for name in without) and len(without) == 9


UNCALIBRATED = {"zero-shot", "naive", "zero-pad", "crop", "transfusion"}


def test_the_report_counts_what_it_says() -> None:
    catalogue = validated(
        Catalogue,
        {
            "claims": [
                {"id": name, "group": group, "left": {"recipe": "table5", "method": "bico"},
                 "right": {"recipe": "table5", "method": "zero-shot"}}
                for name, group in (("good", "One thing"), ("bad", None), ("open", "Another"))
            ],
            "norms": [{"id": "norms", "says": "norms are kept", "recipe": "table5", "margin": 0.1}],
        },
        "test",
    )  # fmt: skip
    worse = {task: -gain for task, gain in BETTER.items()}
    outcomes = {name: verdict(rows("bico", gain), ZERO) for name, gain in
                (("good", BETTER), ("bad", worse), ("open", MIXED), ("norms", 0.0))}  # fmt: skip
    outcomes["norms"] = evaluate({task: {0: 1e-6} for task in TASKS}, Kind.ALIKE, 0.1)
    text = render(catalogue, outcomes, ["Made."])
    assert "**2 of 4 claims held, 1 not held, 1 undecided.**" in text
    assert text.index("## One thing") < text.index("| not held |") < text.index("## Another")
    assert "| BiCo above zero-shot (table5) | +5.14 |" in text and "| 7/7 |" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kindd": "more"}, "unknown key 'claims.0.kindd'; did you mean 'kind'"),
        ({"left": {"recipe": "table5", "metod": "bico"}}, "unknown key 'claims.0.left.metod'; did you mean 'method'"),
        ({"right": {"recipe": "table6", "method": "bico"}}, "no recipe 'table6'; did you mean 'table"),
        ({"id": "x"}, "two claims are called 'x'"),
    ],
)
def test_a_catalogue_with_a_mistake_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    side = {"recipe": "table5", "method": "bico"}
    first, second = ({"id": name, "left": side, "right": side} for name in ("w", "x"))
    with pytest.raises(ConfigError, match="test: ") as caught:
        validated(Catalogue, {"claims": [first | change, second]}, "test")
    assert message in str(caught.value)
