"""The whole thread on tiny models: what is computed, what is cached, what is written."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from mlflow import MlflowClient
from safetensors.torch import load_file

import tasks.collect
from bico.calibration.memory import GIGABYTE, MemoryPlan, plan_memory
from bico.calibration.signals import Signal
from bico.data.tasks import get_task
from bico.models.loading import load, resolve
from flows.transfer import Result, transfer
from tests.flow_setup import SHORT, Bench
from tests.tiny import count_passes

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 3  # two transformer blocks, and what lies behind them


def computed(result: Result) -> dict[str, int]:
    """Stages that did work, by name."""
    return {stage: counts["computed"] for stage, counts in result.stages.items() if counts["computed"]}


def chunk_bytes(bench: Bench, stage: str) -> int:
    """What the arrays of a stage take on the disk, without headers."""
    chunks = (bench.folder / "home/store/final").glob(f"{stage}-*/*/*/c/**/*")
    return sum(path.stat().st_size for path in chunks if path.is_file())


def test_a_run_computes_everything_once_and_then_nothing(ran: Bench) -> None:
    assert computed(ran.first) == {
        "fine-tune": 2,  # the expert, and the target for reference
        "collect-activations": 1,
        "collect-gradients": 1,
        "procrustes": BLOCKS,
        "transfer": 3,  # BiCo at two sample counts, naive once
        "evaluate": 6,  # zero-shot, these three, the fine-tuned target, the expert
    }
    assert all(counts["cached"] == 0 for counts in ran.first.stages.values())
    # Covariances are gone with the maps that were solved from them.
    assert chunk_bytes(ran, "collect-activations") == chunk_bytes(ran, "collect-gradients") == 0
    assert chunk_bytes(ran, "procrustes") > 0
    again = ran.run()
    assert computed(again) == {}
    assert sum(counts["cached"] for counts in again.stages.values()) == 14
    assert not {"collect-activations", "collect-gradients"} & again.stages.keys()
    assert again.rows == ran.first.rows


def test_a_larger_n_takes_one_more_pass_of_each_model_and_what_follows(
    ran: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = {}

    def stream(*args: object):
        counts = count_passes(monkeypatch)
        yield from original(*args)
        collected.update(counts)

    original = tasks.collect._stream
    monkeypatch.setattr(tasks.collect, "_stream", stream)
    more = ran.run(samples=[4, 8, 12], batch_size=4)
    assert computed(more) == {
        "collect-activations": 1,
        "collect-gradients": 1,
        "procrustes": BLOCKS,
        "transfer": 3,
        "evaluate": 3,
    }
    assert more.stages["fine-tune"] == {"computed": 0, "cached": 2}
    assert collected == {"forward": 6, "backward": 6}  # three batches through two models, for both artefacts


def test_how_samples_are_chosen_is_recorded_and_reaches_only_what_depends_on_it(ran: Bench) -> None:
    again = {"collect-activations": 1, "collect-gradients": 1, "procrustes": BLOCKS, "transfer": 1, "evaluate": 1}
    near = ran.run(sampling="centroid-near", samples=[8])
    assert computed(near) == again | {"class-distances": 1}
    assert computed(ran.run(sampling="centroid-far", samples=[8])) == again  # the distances are there
    per_class = ran.run(sampling="per-class", samples=[1, 2])
    assert {row.budget.asked for row in per_class.rows if str(row.method) == "bico"} == {1, 2}
    (drawn,) = json.loads(Path(per_class.outputs["calibration"]).read_text())
    labels = get_task("digits").open("train").labels[drawn["indices"]]
    assert drawn["sampling"] == "per-class" and labels.bincount().tolist() == [2] * 10
    assert sorted(labels[:10].tolist()) == list(range(10))  # the set for one per class comes first


def test_another_method_adds_only_its_maps_and_after(ran: Bench) -> None:
    more = ran.run(methods=["bico", "naive", "theseus"])
    assert computed(more) == {"collect-activations": 1, "procrustes": BLOCKS, "transfer": 2, "evaluate": 2}
    # ... and of its maps only those that BiCo did not need: one more signal per block
    kinds = [
        json.loads(p.read_text())["key"].split("-")[0]
        for p in (ran.folder / "home/store/final").glob("*/MANIFEST.json")
    ]
    assert kinds.count("procrustes") == 3 * BLOCKS


def test_changes_reach_exactly_what_depends_on_them(ran: Bench) -> None:
    assert computed(ran.run(alpha=0.5, batch_size=3)) == {"evaluate": 3}  # nothing for the size of batches
    assert computed(ran.run(test_limit=20)) == {"evaluate": 6}
    again = {"collect-activations": 1, "collect-gradients": 1, "procrustes": BLOCKS, "transfer": 2, "evaluate": 2}
    assert computed(ran.run(completion="svd")) == computed(ran.run(rank=3)) == again
    expected = {"fine-tune": 2, "transfer": 3, "evaluate": 5}
    assert computed(ran.run(finetune=SHORT | {"seed": 1})) == expected


def test_a_missing_or_cut_artefact_is_made_again(ran: Bench) -> None:
    store = ran.folder / "home/store/final"
    chunk = max(
        next(store.glob("procrustes-*")).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0
    )
    chunk.write_bytes(chunk.read_bytes()[:-8])
    again = ran.run()
    # The signal that the damaged maps are of is collected again, and no other.
    assert computed(again) in ({"procrustes": 1, f"collect-{kind}": 1} for kind in ("activations", "gradients"))
    assert again.rows == ran.first.rows


def test_a_memory_budget_takes_more_passes_to_the_same_result(ran: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ran.run(methods=["bico"], oracle=False)
    assert computed(plain) == {}  # fewer methods need nothing new
    for maps in (ran.folder / "home/store/final").glob("procrustes-*"):
        shutil.rmtree(maps)
    models = [load(resolve(str(ran.releases[name])), torch.device("cpu")) for name in "ab"]
    largest = plan_memory(*models, (Signal.INPUT, Signal.OUTPUT_GRAD), 4, 2)
    settings = ran.settings.model_copy(update={"memory": (largest.peak - 1) / GIGABYTE})
    monkeypatch.setattr(tasks.collect, "plan_memory", lambda *args: plans.append(plan_memory(*args)) or plans[-1])
    plans: list[MemoryPlan] = []
    again = transfer(ran.config(methods=["bico"], oracle=False, batch_size=4), settings)
    assert [len(plan.passes) for plan in plans] == [2]
    assert computed(again) == {"collect-activations": 1, "collect-gradients": 1, "procrustes": BLOCKS}
    assert again.rows == plain.rows


def test_results_are_written_for_people_and_programs(ran: Bench) -> None:
    result = ran.run(seeds=[0, 1], export="best")
    rows = list(csv.DictReader(Path(result.outputs["table"]).read_text().splitlines()))
    assert [(r["method"], r["samples"], r["seed"]) for r in rows] == [
        (str(r.method), str(r.budget.asked), "" if r.seed is None else str(r.seed)) for r in result.rows
    ]
    assert [float(r["accuracy"]) for r in rows] == [r.accuracy for r in result.rows]
    assert "| BiCo | 8 |" in Path(result.outputs["markdown"]).read_text()
    assert Path(result.outputs["plot"]).read_bytes().startswith(b"\x89PNG")
    (folder,) = result.outputs["models"]
    assert folder in {row.cell.folder for row in result.rows}
    assert "<!doctype html>" in Path(result.outputs["page"]).read_text()


def test_the_exported_model_is_open_clips_and_does_what_its_row_says(ran: Bench) -> None:
    result = ran.run(export="all")
    folder = Path(result.outputs["models"]["digits-bico-n8-seed0"])
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer, digits = open_clip.get_tokenizer(f"local-dir:{folder}"), get_task("digits")
    test = digits.open("test")
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(test.example(i).convert("RGB")) for i in range(30)]))
        texts = F.normalize(
            model.encode_text(tokenizer([digits.prompts[0].format(n) for n in digits.class_names])), dim=-1
        )
    right = (images @ texts.T).argmax(1) == test.labels[:30]
    row = next(r for r in result.rows if (str(r.method), r.budget.asked) == ("bico", 8))
    assert 100 * right.double().mean().item() == pytest.approx(row.accuracy)
    # ... and it is the target plus the task vector beside it
    base, vector = (
        load_file(p) for p in (ran.releases["b"] / "open_clip_model.safetensors", folder / "task-vector.safetensors")
    )
    updated = model.state_dict()
    assert all(torch.allclose(updated[k], base[k].float() + vector[k], atol=1e-6) for k in vector)
    assert sum(v.norm() > 0 for v in vector.values()) == len(vector)


def test_every_result_is_an_mlflow_run_under_the_flows(ran: Bench) -> None:
    result = ran.first
    place = result.outputs["mlflow"]
    client = MlflowClient(place["uri"])
    parent = client.get_run(place["run"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["source"] == str(ran.releases["a"])
    assert {a.path for a in client.list_artifacts(place["run"])} >= {"accuracy.png", "results.csv", "results.json"}
    children = client.search_runs([place["experiment"]], f"tags.`mlflow.parentRunId` = '{place['run']}'")
    recorded = {(c.data.params["method"], c.data.params["samples"]): c.data.metrics["accuracy"] for c in children}
    assert recorded == {(str(r.method), str(r.budget.asked)): r.accuracy for r in result.rows}


def test_another_shape_of_target(bench: Bench) -> None:
    wide = str(bench.releases["wide"])
    there = bench.run(target=wide, methods=["bico", "zero-pad"], oracle=False)
    back = bench.run(source=wide, target=str(bench.releases["a"]), methods=["theseus", "crop"], oracle=False)
    assert {str(r.method) for r in there.rows} == {"zero-shot", "bico", "zero-pad", "expert"}
    assert {str(r.method) for r in back.rows} == {"zero-shot", "theseus", "crop", "expert"}


def test_an_expert_from_elsewhere_gives_what_fine_tuning_here_gave(ran: Bench) -> None:
    made = (ran.folder / "home/store/final").glob("fine-tune-*")  # of source and target
    (expert,) = (
        folder / "expert.safetensors"
        for folder in made
        if json.loads((folder / "MANIFEST.json").read_text())["meta"]["model"] == str(ran.releases["a"])
    )
    theirs = ran.run(oracle=False, expert=expert, finetune=None)
    assert computed(theirs) == {"adopt-expert": 1, "transfer": 3, "evaluate": 5}
    (source,) = [row for row in theirs.rows if str(row.method) == "source"]  # beside the expert, for reference
    ours = [row for row in ran.first.rows if str(row.method) != "fine-tuned"]
    assert [row for row in theirs.rows if row != source] == ours
    assert theirs.rows[-1].method.name == "expert" and theirs.rows[-2] == source


def test_an_edited_comment_recomputes_nothing_and_json_is_all_there_is(ran: Bench, tmp_path: Path) -> None:
    """The command line, on a copy of the source in which every file has another comment."""
    copy = tmp_path / "copy"
    for package in ("bico", "storage", "tasks", "flows", "configs", "zoo"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*.py"):
        path.write_text(path.read_text() + "\n# Another comment.\n")
    settings = ran.config().model_dump(mode="json")
    (tmp_path / "run.yaml").write_text(json.dumps(settings))  # JSON is YAML
    command = [
        sys.executable,
        "-c",
        "from flows.cli import main; main()",
        "transfer",
        "--config",
        str(tmp_path / "run.yaml"),
    ]
    from prefect.settings import PREFECT_API_URL

    env = os.environ | {
        "PYTHONPATH": str(copy),
        "BICO_HOME": str(ran.settings.home),
        "PREFECT_API_URL": PREFECT_API_URL.value(),
    }
    done = subprocess.run(
        [*command, "--device", "cpu", "--json"],
        env=env,
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["stages"]["computed"] == 0 and printed["stages"]["cached"] == 14
    assert set(printed) == {"rows", "outputs", "stages"}
    assert set(printed["rows"][0]) == {"task", "method", "samples", "seed", "accuracy", "unlabelled"}
