"""Is the new release better? On rows with a known answer, and as the command line says it."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats

from bico.errors import ConfigError
from bico.reporting.compare import Answer, compare, comparison_table, read_rows
from bico.reporting.rows import COLUMNS, Row
from tests.command import refused, run
from tests.rows import row

TASKS = ["a", "b", "c", "d", "e"]
GAINS = dict(zip(TASKS, [4.0, 2.5, 3.0, 5.0, 1.5], strict=True))


def rows(gains: dict[str, float] | None = None, tasks: list[str] = TASKS) -> list[Row]:
    """A sweep over two sample counts and three seeds; seeds and counts spread by a point, the gain is the task's."""
    gains = gains or {}
    found = [row(task, "zero-shot", 0, None, 30.0) for task in tasks]
    for n, task in enumerate(tasks):
        for samples in (20, 100):
            for seed in (0, 1, 2):
                accuracy = 40.0 + 7 * n + seed + samples / 50 + gains.get(task, 0)
                found += [row(task, "bico", samples, seed, accuracy)]
    return found


def write(folder: Path, found: list[Row]) -> Path:
    folder.mkdir(parents=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        writer.writerows(r.record() for r in found)
    return folder


def test_a_better_release_is_found_better_and_its_opposite_worse() -> None:
    found = compare(rows(), rows(GAINS))
    (bico,) = (one for name, one in found.methods.items() if name == "bico")
    assert found.about == "bico" and found.answer is Answer.BETTER and len(bico.cells) == 30
    gains = list(GAINS.values())
    assert bico.outcome.mean == pytest.approx(sum(gains) / 5)
    expected = scipy.stats.ttest_1samp(gains, 0, alternative="greater").pvalue
    assert bico.outcome.p == pytest.approx(expected)
    assert f"p = {expected:.3g}" in found.sentence and found.sentence.startswith("Yes")
    back = compare(rows(GAINS), rows())
    assert back.answer is Answer.WORSE and back.sentence.startswith("No")
    assert back.methods["bico"].outcome.mean == pytest.approx(-sum(gains) / 5)


def test_seeds_and_sample_counts_do_not_count_as_tasks() -> None:
    """Thirty cells of which one task decides all: no certainty from there being many."""
    found = compare(rows(), rows({"a": 9.0, "b": -0.2, "c": 0.3, "d": -0.1, "e": 0.2}))
    assert found.answer is Answer.UNDECIDED
    deltas = [cell.delta for cell in found.methods["bico"].cells]
    assert scipy.stats.ttest_1samp(deltas, 0, alternative="greater").pvalue < 0.01  # what a careless test would say


def test_what_has_no_answer() -> None:
    one = compare(rows(tasks=["a"]), rows({"a": 3.0}, tasks=["a"]))
    assert one.answer is Answer.UNDECIDED and "one task" in one.sentence and "+3.00" in one.sentence
    same = compare(rows(), rows())
    assert same.answer is Answer.UNDECIDED and same.sentence == "Neither: both runs agree in each cell (30)."
    assert "| 1 | undecided |" in comparison_table(same)


def test_a_margin_and_another_method() -> None:
    assert compare(rows(), rows(GAINS), margin=3.0).answer is Answer.UNDECIDED
    about = compare(rows(), rows(GAINS), about="zero-shot")
    assert about.about == "zero-shot" and about.answer is Answer.UNDECIDED
    with pytest.raises(ConfigError, match="'theseus' is not in both runs"):
        compare(rows(), rows(GAINS), about="theseus")


def test_only_cells_of_both_runs_are_compared_and_the_rest_is_counted() -> None:
    more = [*rows(GAINS), row("f", "bico", 20, 0, 1.0), row("a", "bico", 50, 0, 1.0)]
    found = compare([*rows(), row("a", "naive", 0, None, 3.0)], more)
    assert found.alone == (1, 2) and len(found.methods["bico"].cells) == 30
    assert "Left out: 1 cells of the first run and 2 of the second only." in comparison_table(found)
    with pytest.raises(ConfigError, match=r"Nothing to compare.*BiCo on a.*N=\[20, 100\].*on z"):
        compare(rows(), [row("z", "bico", 20, 0, 1.0)])


def test_tables_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    table = write(tmp_path / "run", rows()) / "results.csv"
    assert read_rows(table.read_text().splitlines(), "x") == rows()
    recipe = ["transfer,task,method,samples,seed,accuracy", "pair,a,bico,10,0,1.5", "other,a,bico,10,0,2.5"]
    assert [row.task for row in read_rows(recipe, "x")] == ["pair: a", "other: a"]
    with pytest.raises(ConfigError, match="x: not a table of results"):
        read_rows(["task,method", "a,b"], "x")


def test_the_command_says_it_in_a_table_and_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write(tmp_path / "old", rows()), write(tmp_path / "new", rows(GAINS))
    assert run(["compare", str(old), str(new)], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "| BiCo | 30 | +3.20 |" in printed and printed.strip().endswith("sd 1.35, one-sided p = 0.00305).")
    assert run(["compare", str(old), str(new / "results.csv"), "--json"], monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answer"] == "better" and len(said["methods"]["bico"]["cells"]) == 30
    assert not any(isinstance(v, float) and math.isnan(v) for m in said["methods"].values() for v in m.values())


def test_what_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where nobody has made runs
    old = str(write(tmp_path / "old", rows()))
    assert "give a folder with results.csv" in refused(["compare", old, "nowhere"], monkeypatch, capsys)
    home = ["--home", str(tmp_path / "home")]
    line = refused(["compare", old, "0" * 32, *home], monkeypatch, capsys)
    assert "No MLflow database" in line and "give --home" in line
    broken = [replace(row, accuracy=math.nan) for row in rows()]
    assert "not finite" in refused(["compare", old, str(write(tmp_path / "nan", broken))], monkeypatch, capsys)
