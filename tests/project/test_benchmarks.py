"""The timed benchmarks, on tiny models: that they run, and that what they compare agrees."""

import importlib
from pathlib import Path

import pytest
import torch

import benchmarks

MODULES = sorted(
    ".".join(path.relative_to(Path(benchmarks.__file__).parents[1]).with_suffix("").parts)
    for path in Path(benchmarks.__file__).parent.rglob("*.py")
    if path.stem != "__init__"
)


def printed(name: str, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, *arguments.split()])
    module.main()
    return capsys.readouterr().out


def cells(text: str, start: str) -> list[str]:
    """The cells behind the first one, of the line whose first cell this is."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize("name", MODULES)
def test_every_script_imports(name: str) -> None:
    importlib.import_module(name)


def test_blocks_find_the_covariances_that_were_stored_for_them(tmp_path: Path) -> None:
    from benchmarks.blocks import SIGNALS, stages
    from flows.settings import Settings

    made = {("blocks.0.c_fc", signal): torch.randn(3, 4) for signal in SIGNALS}
    _, wanted = stages(made, 2, Settings(home=tmp_path))
    assert [block.group for block in wanted] == ["block-0", "block-1"]
    for block in wanted:
        for part, cross in zip(block.parts, made.values(), strict=True):
            ((name, found),) = part.crosses()
            assert name in part.names(10) and found.equal(cross)


@pytest.mark.parametrize(("clock", "workers"), [("wall", 0), ("cpu", 0), ("wall", 1)])
def test_a_transfer_beside_its_reference(
    clock: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = f"--pair tiny --samples 2,4 --repeats 1 --reference --clock {clock} --workers {workers}"
    text = printed("transfer", given, monkeypatch, capsys)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## N = 2", "## N = 4"]
    for phase in ("collect", "maps", "apply"):
        ours, _, reference, ratio = cells(text, phase)
        assert float(ours) >= 0 and float(reference) >= 0 and float(ratio) > 0
    assert "Floor: bare passes" in text


def test_a_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("transfer", "--pair tiny --samples 2,4 --repeats 1 --sweep", monkeypatch, capsys)
    assert "One pass for N = 2, 4" in text and "## N" not in text


def test_solvers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("solver", "--widths 32,320 --rows 40,60 --rank 8 --repeats 1 --svd-to 100", monkeypatch, capsys)
    for width, form, svd in (("32", "covariance", True), ("320", "sketch", False)):
        rows, kept, size, *_, agreement, plain = cells(text, width)
        assert (rows, kept, bool(plain)) == ("40", form, svd)
        assert float(size) == pytest.approx(4e-6 * (32 * 32 if kept == "covariance" else 320 * 8 * 6), abs=0.05)
        assert 95 < float(agreement) < 100.1
    assert text.count("Exponents at") == 2


def test_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("disk", "--pair tiny --rank 2 --draws 1000", monkeypatch, capsys)
    before, after = (float(cell) for cell in cells(text, "all that stays"))
    assert 0 < after < before and f"{after / before:.1f}" in text


def test_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("store", f"--pair tiny --repeats 1 --folder {tmp_path}", monkeypatch, capsys)
    assert [float(cell) > 0 for cell in cells(text, "store / numpy")[:2]] == [True, True]
    assert not list(tmp_path.iterdir())


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed("scaling", "--samples 2,4 --widths 64,128 --depths 1,2 --repeats 1", monkeypatch, capsys)
    for number in ("samples", "widths", "depths"):
        assert len(cells(text, number)) == 3
    # counted operations of solving: none more for samples, between square and cube of the width, and a little less than depth
    counted = [float(cells(text, n)[1].split(" / ")[1]) for n in ("samples", "widths", "depths")]
    assert counted[0] == 0 and 2 < counted[1] < 3 and 0.9 < counted[2] < 1.01


def test_language_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("benchmarks.language_shapes")
    shape = {"d_model": 16, "d_kv": 4, "num_heads": 6, "d_ff": 40}
    monkeypatch.setattr(module, "SHAPES", {"wide": shape, "narrow": shape | {"num_heads": 2, "d_ff": 12}})
    monkeypatch.setattr(module, "RESULT", tmp_path / "shapes.md")
    text = printed("language_shapes", "--samples 4 --tokens 16 --budget 1", monkeypatch, capsys)
    assert (tmp_path / "shapes.md").read_text().strip() in text
    for block in ("block-0", "block-1"):
        assert float(cells(text, block)[-1]) > 0
    assert "Within 1 GB there is room for" in text and "1 passes" in text
    source, target = (module.random_t5(name, 2, 1) for name in module.SHAPES)
    outputs = 3 * 24 * 8 + 16 * 16 + 40 * 12 + 16 * 16  # all small: no sketches
    assert module.covariance_bytes(
        source.sites, target.sites, next(module.groups(target.sites)), module.SIGNALS
    ) == 4 * (16 * 16 + 24 * 8 + 16 * 16 + 40 * 12 + outputs)
    (line, short) = module.all_blocks(source, target, 10**9, 0.001, 2)
    assert "24 x 1.00 = 24.0 GB at once" in line and "0.001 GB do not hold one block" in short


def test_verdicts_on_losses() -> None:
    from benchmarks.tables import verdicts
    from bico.reporting.rows import Row
    from tests.rows import row

    def rows(bico: float) -> list[Row]:
        levels = {"bico": bico, "theseus": 50.0, "target-probe": 52.0, "source-probe": 60.0}
        tasks = [f"task-{n}" for n in range(8)]
        return [
            row(task, method, 50, seed, level + 0.1 * n)
            for n, task in enumerate(tasks)
            for method, level in levels.items()
            for seed in (0, 1)
        ]

    text = verdicts({"probe": rows(58.0), "text": rows(51.0)}, [50])
    assert cells(text, "BiCo: probe above text")[1] == "+7.00"
    assert [cells(text, f"text: BiCo above {name}")[1] for name in ("THESEUS", "target probe")] == ["+1.00", "-1.00"]
    assert cells(text, "probe: BiCo above source probe")[-1] != cells(text, "probe: BiCo above THESEUS")[-1]


def test_products(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.products.SHAPES", [(8, 20, 12)])
    rates = cells(printed("products", "", monkeypatch, capsys), "8 × 20 × 12")
    assert len(rates) == 5 and all(float(rate) >= 0 for rate in rates)


def test_eight_tasks_share_no_class_and_leave_none_out() -> None:
    from benchmarks.tasks_apart import EIGHT
    from bico.data.tasks import EMBEDDED

    assert len(EIGHT) == 8
    for task in ("digits", "segments", "lamps"):
        names = EMBEDDED[task].class_names
        parts = [part.classes(names) for part in EIGHT.values() if part.task == task]
        assert [name for part in parts for name in part] == list(names) and all(len(part) > 1 for part in parts)


def test_a_command_is_measured_by_what_it_takes_itself() -> None:
    from benchmarks.commands import FailedCommandError, python

    some, more = (python("-c", f"x = b'x' * {size}; print(len(x))") for size in (10, 200_000_000))
    assert more.out.strip() == "200000000" and more.memory - some.memory > 150_000_000
    assert 0 < more.cpu < more.seconds * 64
    with pytest.raises(FailedCommandError, match="ended with 3"):
        python("-c", "import sys; sys.exit(3)")


def test_a_plan_that_is_further_off_than_said_is_marked() -> None:
    from benchmarks.plans import QUANTITIES, table

    plan = dict.fromkeys(QUANTITIES, 100e6)
    happened = plan | {"memory (MB)": 149e6, "store (MB)": 151e6, "results (MB)": 60e6}
    text = table({"own": {"plan": plan, "happened": happened, "time (s), planned again": 100e6}})
    held = {line.split("|")[2].strip(): line.split("|")[6].strip() for line in text.splitlines()[2:]}
    assert held == {
        "time (s)": "yes", "memory (MB)": "yes", "store (MB)": "NO", "results (MB)": "NO", "time (s), planned again": "",
    }  # fmt: skip


def test_the_page_of_depths_has_each_row_beside_its_control() -> None:
    from benchmarks.depth import CONTROL, TOGETHER, UNTOUCHED, Row, page

    def rows(task: str, more: float) -> list[Row]:
        values = {UNTOUCHED: 50.0, "bico": 60.0, "bico:depth=sum": 70.0, f"{CONTROL}bico": 48.0, f"{TOGETHER}o": 1.25}
        return [
            Row("a → b", task, 20, draw, name, value + more * draw) for name, value in values.items() for draw in (0, 1)
        ]

    text = page([*rows("x", 2.0), *rows("y", 0.0)])
    assert cells(text, UNTOUCHED) == ["51.0 ± 1.4", "50.0 ± 0.0", "50.5 ± 0.7"]
    assert cells(text, "`bico`") == ["61.0 ± 1.4 (49.0)", "60.0 ± 0.0 (48.0)", "60.5 ± 0.7 (48.5)"]
    assert cells(text, "`bico:depth=sum`") == ["71.0 ± 1.4", "70.0 ± 0.0", "70.5 ± 0.7"]
    assert "fine-tuned" not in text and "Σy" in text and "1.75" in text
