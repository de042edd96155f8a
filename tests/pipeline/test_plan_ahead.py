"""What a run will do, told before it; what it leaves out; and how far it is while it runs."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

import flows.planning.ready
import flows.services.solving
from bico.reporting.page.record import RunRecord
from flows.commands import links, watch
from flows.commands.watch import Watch, watching
from flows.config import PRESETS, TransferConfig
from flows.planning.disk import bytes_told
from flows.planning.estimate import OVERHEAD, Known, forecast
from flows.planning.forecast import look_ahead
from flows.planning.pace import Pace, read_pace, write_pace
from flows.planning.plan import make_plan
from flows.planning.ready import Ready, handed
from flows.planning.rivals import left_out, rivals
from flows.planning.speeds import Speed
from flows.services.solving import Solver, pays
from flows.settings import Settings
from flows.transfer import transfer
from tasks.cached_stage import Done, Workspace
from tasks.progress import reported
from tests.command import run
from tests.flow_setup import Bench

PAIR: dict[str, Any] = {"source": "zoo:mini-a", "target": "zoo:mini-b", "tasks": ["digits"]}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_plan_tells_stages_and_disk_and_does_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.settings = bench.settings.model_copy(update={"dask_scheduler": None})  # small maps need no cluster
    config = bench.config(methods=["bico", "none+head"], unlabelled=5)
    plan = make_plan(config, bench.settings)
    ahead, cost = forecast(plan, bench.settings)
    store = bench.folder / "home/store/final"
    assert not list(store.glob("*")) and not list((bench.folder / "out").glob("*"))
    ready = Ready(config, bench.settings, plan, cost)
    monkeypatch.setattr(flows.planning.ready, "make_plan", pytest.fail)  # it is handed over, and not made again
    with handed(ready):
        result = transfer(config, bench.settings)
    assert ahead.stages == result.stages
    assert [stage for stage, _ in cost.steps].count("procrustes") == result.stages["procrustes"]["computed"]
    results = size(bench.folder / "out") + size(bench.folder / "home/mlflow-artifacts")
    assert cost.store / 1.5 < size(store) < cost.store * 1.5
    assert cost.results / 1.5 < results < cost.results * 1.5
    record = RunRecord.parse((config.out / "run.json").read_text(), "run.json")
    assert record.planned.keys() == record.measured.keys() == {
        "time", "memory at the peak", "new in the store", "results"
    }  # fmt: skip
    assert (
        record.planned["new in the store"] == bytes_told(cost.store) and record.expected.keys() == cost.by_stage.keys()
    )
    made = {stage for stage, counts in result.stages.items() if counts["computed"]} - {"collect-gradients"}
    assert made <= record.took.keys() and all(record.took[stage] > 0 for stage in made)
    assert "Cost against plan" in (config.out / "report.html").read_text()
    assert 0 < cost.seconds < 600 and cost.memory > 10**8
    # Two models, forward and backward, on 8 labelled and 5 other samples; 30 test samples for each of nine cells; ...
    assert cost.passes > 4 * 13 + 9 * 30


def test_examples_are_prepared_once_and_every_sample_passes_each_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = bench.config(oracle=True)
    plan = make_plan(config, bench.settings)
    steps = [step for step in look_ahead(plan, bench.settings).steps if step.stage not in ("procrustes", "transfer")]

    def seconds(**of: float) -> float:
        speed = Speed(**{"forward": 0.0, "train": 0.0, "prepare": 0.0, "sample": 1, "saved": 1} | of)
        monkeypatch.setattr(Known, "speed", lambda self, files, task: speed)
        known = Known(plan)
        return sum(known.look(step)[0] for step in steps)

    # Of both models 30 test samples, 16 that two steps of fine-tuning draw, and the 8 that calibrate.
    assert seconds(prepare=1.0) == 2 * (30 + 16 + 8)
    # The calibration goes there and, for half of what the way back to parameters costs, back to inputs.
    evaluated, calibrated, tuned = 30 * sum(step.stage == "evaluate" for step in steps), 2 * 8, 2 * 16
    assert seconds(forward=1.0, train=3.0) == evaluated + OVERHEAD * 2 * calibrated + 3 * tuned


def test_what_runs_have_taken_is_learnt(tmp_path: Path) -> None:
    assert read_pace(tmp_path).of("evaluate") == 1.0
    write_pace(tmp_path, Pace().after({"evaluate": 2.0, "probe": 0.1}, {"evaluate": 6.0, "probe": 0.3, "merge": 1.0}))
    pace = read_pace(tmp_path)
    assert [pace.of(stage) for stage in ("evaluate", "probe", "merge")] == [3.0, 1.0, 1.0]  # too short to tell; unknown
    assert pace.after({"evaluate": 2.0}, {"evaluate": 2.0}).of("evaluate") == (3.0 + 2.0) / (1.0 + 2.0)
    assert Pace({"evaluate": (1.0, 99.0)}).of("evaluate") == 8.0
    (tmp_path / "pace.json").write_text("[")
    assert read_pace(tmp_path) == Pace()


def arguments(bench: Bench, command: str, *more: str) -> list[str]:
    pair = ["--source", str(bench.releases["a"]), "--target", str(bench.releases["b"]), "--task", "digits"]
    return [command, *pair, "--samples", "4", "--seeds", "0", "--device", "cpu", "--json", *more]


def test_the_commands_plan_and_dry_run_say_the_same(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BICO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    said = []
    for command, more in (("plan", ()), ("transfer", ("--dry-run",))):
        assert run(arguments(bench, command, "--quick", "--methods", "bico,naive", *more), monkeypatch) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["stages"]["cached"] == 0 and said[0]["refused"] == []
    assert {k: v["computed"] for k, v in said[0]["stages"]["by_stage"].items()} == {
        k: v["computed"] for k, v in said[1]["stages"]["by_stage"].items()
    }
    assert said[0]["methods"] == ["bico", "naive"] and "--oracle" in said[0]["left_out"]
    assert "fine-tune" in said[0]["stages"]["by_stage"] and said[0]["seconds"] > 0
    assert run(arguments(bench, "plan", "--methods", "bicoo"), monkeypatch) == 2
    (why,) = json.loads(capsys.readouterr().out)["refused"]
    assert "did you mean 'bico'" in why
    assert run(arguments(bench, "plan", "--quick", "--full"), monkeypatch) == 2


def test_with_an_expert_only_what_was_asked_is_measured() -> None:
    def asked(**more: Any) -> tuple[bool, list[str], str]:
        config = TransferConfig(**PAIR, **more)
        assert TransferConfig(**config.model_dump(mode="json")) == config
        return config.oracle, [str(spec) for spec in rivals(config)], left_out(config)

    oracle, beside, words = asked(expert="e.pt", methods=["bico", "bico+projection", "bico+tune"])
    assert not oracle and beside == ["none+head:targets=labels", "none+head", "none+projection"]
    assert words == "Left out: fine-tuning the target (--oracle), 5 rivals of the transfer (--rivals all)."
    oracle, beside, words = asked(expert="e.pt", rivals="all", oracle=True)
    assert oracle and len(beside) == 6 and words == ""
    assert asked() == (True, beside, "")
    assert asked(expert="e.pt", baselines=True)[1] == beside and asked(baselines=False)[1] == []
    assert asked(baselines=False, rivals="all")[1] == beside
    oracle, beside, words = asked(**PRESETS["quick"])
    assert not oracle and beside == [] and "after the first 1000 (--test-limit)" in words
    assert asked(**PRESETS["full"], expert="e.pt") == asked()


def test_a_run_is_named_by_what_it_is_of() -> None:
    config = TransferConfig(**PAIR, expert="runs/birds/best.pt", samples=[1, 2, 3, 4, 5, 6], seeds=[0])
    assert config.title == "mini-a-to-mini-b digits bico,theseus,naive N=1,2,3,4,+2 seeds=0 expert=birds/best.pt"


# While it runs --------------------------------------------------------------------------------------------------------


def test_a_watch_tells_what_is_left_at_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seen = Watch(4, [("fine-tune", 10.0), ("evaluate", 5.0), ("evaluate", 5.0)])
    assert seen.line == "starting" and seen.left == 20.0
    seen.begins("fine-tune", "digits")
    now = 110.0
    seen.advances("steps", 25, 100)
    assert seen.stage_left == 30.0
    assert seen.line == "stage 1 of 4, fine-tune digits: 25 of 100 steps, 30 s left; the run: about 40 s left"
    now = 120.0
    seen.ended("fine-tune", cached=False)  # twice the time that was planned, so the others take that too
    assert seen.left == 20.0
    seen.begins("evaluate", "")
    seen.ended("evaluate", cached=True)
    assert seen.done == 2 and seen.left == 20.0
    for _ in range(2):
        seen.ended("evaluate", cached=False)
    assert seen.left is None


def test_without_a_terminal_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST", 0.01)
    monkeypatch.setattr(watch, "EVERY", 0.01)
    stream = io.StringIO()
    with watching(2, [("evaluate", 1.0)], stream):
        watch.begins("evaluate", "digits/bico")
        with reported("evaluate", "test samples", 10) as advance:
            advance(5)
            time.sleep(0.2)
        watch.ended("evaluate", cached=False)
    assert "stage 1 of 2, evaluate digits/bico: 5 of 10 test samples" in stream.getvalue()
    told = stream.getvalue()
    watch.begins("evaluate", "x")  # nobody watches any more
    assert stream.getvalue() == told


@pytest.mark.parametrize(("answering", "link"), [(True, True), (False, False)])
def test_a_link_is_printed_only_where_somebody_answers(
    answering: bool, link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(links, "answers", lambda address: asked.append(address) or answering)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    outputs = {
        "prefect": {"flow_run": "f00"},
        "mlflow": {"uri": "sqlite:////x/mlflow.db", "experiment": "1", "run": "b42"},
    }
    text = links.where_to_look(outputs)
    assert asked == ["http://127.0.0.1:4200/api/health", "http://127.0.0.1:5000/health"]
    assert "f00" in text and "b42" in text and ("http://" in text) is link
    assert links.prefect_is_configured()


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.commands.transfer_cli.asked_for", stop)
    assert run(["transfer", "--source", "a b", "--quick"], monkeypatch) == 130
    assert "`bico transfer --source 'a b' --quick` goes on from there" in capsys.readouterr().err


# Maps, here or on a cluster -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "here"), [(0.0, 5), (9.0, 1)])
def test_a_cluster_is_started_for_what_takes_long_enough(
    seconds: float, here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, solved, sent = [0.0], [], []

    def alone(task: object, space: object, block: str) -> str:
        now[0] += seconds
        solved.append(block)
        return block

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(flows.services.solving, "result_of", alone)
    monkeypatch.setattr(Solver, "_on_dask", lambda self, space, blocks: sent.extend(blocks) or blocks)
    monkeypatch.setattr(flows.services.solving.torch, "get_num_threads", lambda: 2)
    blocks: Any = list("abcde")
    done: list[Done] = Solver(Settings(home=tmp_path, workers=2)).solve(Workspace(str(tmp_path)), blocks)
    assert (solved, sent) == (blocks[:here], blocks[here:]) and done == blocks
    Solver(Settings(home=tmp_path, dask_scheduler="tcp://x:1")).solve(Workspace(str(tmp_path)), blocks)
    assert sent[-5:] == blocks and len(solved) == here  # who names a cluster wants it
    assert not pays(1.0, 5, workers=2, threads=2)
