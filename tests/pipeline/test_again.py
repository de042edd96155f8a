"""A finished run asked for again: nothing is started, and only if nothing has changed."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter

import flows.planning.plan
from flows.commands.compare_cli import by_name
from flows.config import TransferConfig, read_config
from flows.records import again, records_gc
from flows.records.records_gc import collect_records
from flows.settings import Settings
from storage.runs import delete_runs, old_runs
from tasks.record import open_tracker
from tests.command import run
from tests.flow_setup import Bench


def test_a_finished_run_is_told_without_going_through_it(
    ran: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(ran.config(seeds=[1]).model_dump(mode="json")))  # whose maps are solved now
    command = ["transfer", "--config", str(file), "--home", str(ran.settings.home), "--device", "cpu"]
    assert run([*command, "--json"], monkeypatch) == 0
    first = json.loads(capsys.readouterr().out)
    settings, config = Settings(home=ran.settings.home), read_config(file, {})

    def no_plan(*args: object) -> None:
        raise AssertionError("a plan was made")

    with monkeypatch.context() as patched:
        patched.setattr(flows.planning.plan, "make_plan", no_plan)
        patched.setattr("flows.commands.links.prefect_is_configured", lambda: True)
        assert run([*command, "--json"], patched) == 0
        again_told = json.loads(capsys.readouterr().out)
        assert first["stages"]["computed"] > 0 == again_told["stages"]["computed"]
        assert again_told | {"stages": first["stages"]} == first
        assert run(command, patched) == 0
        told = capsys.readouterr().out
        assert "0 computed, 16 cached" in told and "this very run was made on" in told and "in the store" in told
    _is_recorded(first, config.title)

    # What has changed is gone through.
    assert again.find(config, settings) is not None
    assert again.find(config.model_copy(update={"alpha": 0.5}), settings) is None
    table = Path(first["outputs"]["table"])
    _changed_and_back(table, config, settings)
    _changed_and_back(ran.releases["a"] / "open_clip_config.json", config, settings)
    artefact = max((ran.settings.home / "store/final").glob("evaluate-*"), key=lambda path: path.stat().st_mtime)
    artefact.rename(artefact.with_name("elsewhere"))
    assert again.find(config, settings) is None
    artefact.with_name("elsewhere").rename(artefact)
    assert again.find(config, settings) is not None

    # Runs are found by name, and old ones go.
    assert by_name("a-to-b digits N=4,8", settings) == first["outputs"]["mlflow"]["run"]
    assert collect_records(settings, 3600, dry_run=False).mlflow == 0
    freed = collect_records(settings, -1, dry_run=True)
    assert freed.mlflow >= 1 + len(first["rows"]) and freed.bytes > 1000 and freed.prefect >= 1
    flow_run = UUID(first["outputs"]["prefect"]["flow_run"])
    with get_client(sync_client=True) as prefect:
        left_by = {"artifact_filter": ArtifactFilter(flow_run_id={"any_": [flow_run]})}
        assert {one.key for one in prefect.read_artifacts(**left_by)} >= {"results", "cells", "accuracy"}
        records_gc._delete(prefect, flow_run)
        assert not prefect.read_artifacts(**left_by)
        assert not prefect.read_flow_runs(flow_run_filter=FlowRunFilter(id={"any_": [flow_run]}))
    tracker = open_tracker(settings)  # of its runs this one goes alone: other tests share the others
    (mine,) = (old for old in old_runs(tracker, time.time()) if old.run == first["outputs"]["mlflow"]["run"])
    assert mine.folder is not None and (mine.folder / "results.csv").exists()
    delete_runs(tracker, [mine])
    assert not mine.folder.parent.exists() and again.find(config, settings) is None
    client = MlflowClient(first["outputs"]["mlflow"]["uri"])
    left = client.search_runs([first["outputs"]["mlflow"]["experiment"]], run_view_type=ViewType.ALL)
    assert len(left) == freed.mlflow - 1 and mine.run not in {one.info.run_id for one in left}
    shutil.rmtree(artefact)
    assert again.sweep(settings.home, settings.store) == 1


def test_all_flows_of_the_program_are_counted_among_its_runs() -> None:
    names = set()
    for path in (Path(__file__).resolve().parents[2] / "flows").rglob("*.py"):
        names |= set(re.findall(r'^@flow\(name="([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(names) > 10 and names == {*records_gc.OURS}


def _changed_and_back(path: Path, config: TransferConfig, settings: Settings) -> None:
    """A file that was touched is another; its record, told of the new time, holds again."""
    before = json.dumps(again.stamps([path])[0])
    os.utime(path)
    assert again.find(config, settings) is None
    record = again._record(config, settings)
    record.write_text(record.read_text().replace(before, json.dumps(again.stamps([path])[0])))
    assert again.find(config, settings) is not None


def _is_recorded(first: dict, title: str) -> None:
    """In Prefect as runs that ended as Cached; in MLflow as the one run that it was."""
    with get_client(sync_client=True) as client:
        runs = [one for one in client.read_flow_runs() if one.name == title and one.state_name == "Cached"]
    assert len(runs) == 2
    place = first["outputs"]["mlflow"]
    found = MlflowClient(place["uri"]).search_runs([place["experiment"]], "tags.`bico.kind` = 'transfer'")
    assert [one.info.run_id for one in found if one.info.run_id == place["run"]] == [place["run"]]
    assert {"samples": "4, 8", "tasks": "digits", "rivals": "none"}.items() <= found[0].data.params.items()


def test_to_find_out_takes_none_of_the_large_libraries() -> None:
    code = (
        "import sys, flows.cli, flows.records.again, flows.commands.links, flows.planning.disk\n"
        "print([m for m in ('prefect', 'mlflow', 'distributed', 'open_clip', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
