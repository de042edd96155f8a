"""What a run leaves for people: artifacts in Prefect, runs, models and versions in MLflow, and how it tells of retries."""

import json
import time
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

import tasks.progress
from bico.errors import ConnectionLostError, StoreError
from bico.reporting.block_report import BlockReport, worst
from flows.planning.plan import make_plan
from flows.records.results import rows_of
from flows.records.written import settings_of
from flows.transfer import Result
from storage.tracking import Tracker
from tasks.progress import reported
from tasks.record import record_run, register
from tests.flow_setup import Bench
from tests.rows import row


def artifacts(flow_run: str) -> dict[str, Artifact]:
    """Of a run and its tasks, by key."""
    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
        return {found.key: found for found in client.read_artifacts(artifact_filter=chosen)}


def test_a_run_shows_what_came_out_in_both_uis(bench: Bench) -> None:
    result = bench.run(register_as="digit-reader", samples=[8], export="all")
    _shown_in_prefect(result)
    client, run = MlflowClient(result.outputs["mlflow"]["uri"]), result.outputs["mlflow"]["run"]
    _recorded_in_mlflow(client, run, result)
    # The table in MLflow is the one that was returned, and a run can be named by its id.
    assert rows_of(run, bench.settings) == result.rows
    # The exported model has gone there too, whole, and there is a version of it.
    named = {f"digit-reader-{name}": "1" for name in ("digits-bico-n8-seed0", "digits-naive")}
    assert result.outputs["registered"] == named
    folder = Path(result.outputs["models"]["digits-bico-n8-seed0"])
    version = client.get_model_version("digit-reader-digits-bico-n8-seed0", "1")
    assert version.run_id == run
    there = Path(client.download_artifacts(run, "models/digits-bico-n8-seed0"))
    names = sorted(path.name for path in folder.iterdir())
    assert "open_clip_model.safetensors" in names and "README.md" in names
    assert all((there / name).read_bytes() == (folder / name).read_bytes() for name in names)
    row = next(row for row in result.rows if str(row.method) == "bico")
    assert f"| test accuracy on digits | {row.accuracy:.2f} %" in (folder / "README.md").read_text()


def _shown_in_prefect(result: Result) -> None:
    shown = artifacts(result.outputs["prefect"]["flow_run"])
    assert {shown[key].type for key in ("results", "cells", "blocks", "accuracy")} == {"markdown", "table", "image"}
    page = shown["results"].data
    assert "| BiCo | 8 |" in page and "## Blocks" in page and "| evaluate | 5 | 0 |" in page
    cells = json.loads(shown["cells"].data)
    assert [(c["task"], c["accuracy"]) for c in cells] == [(r.task, f"{r.accuracy:.2f}") for r in result.rows]
    assert shown["accuracy"].data.startswith("data:image/png;base64,iVBOR")
    blocks = json.loads(shown["blocks"].data)
    assert [block["block"] for block in blocks] == ["block-0", "block-1", "head"]
    # Most of the last block's gradients come from the eight class tokens alone, and there are 16 to 64 directions.
    first, last = (int(block["output gradients determined"].removesuffix(" %")) for block in blocks[:2])
    assert last < first and "determined (output gradients)" in blocks[1]["verdict"]
    assert all(block["weights changed by"] != "0.00 %" for block in blocks)


def _recorded_in_mlflow(client: MlflowClient, run: str, result: Result) -> None:
    parent = client.get_run(run)
    assert parent.data.tags["bico.kind"] == "transfer"
    assert parent.data.tags["prefect.flow_run"] == result.outputs["prefect"]["flow_run"]
    by_method = {str(row.method): row.accuracy for row in result.rows}
    assert parent.data.metrics["over zero-shot/bico"] == pytest.approx(by_method["bico"] - by_method["zero-shot"])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run}'")
    (bico,) = (child for child in children if child.data.tags["method"] == "bico")
    assert bico.data.tags["task"] == "digits" and bico.data.tags["samples"] == "8" and bico.data.tags["seed"] == "0"
    assert bico.data.metrics["over zero-shot"] == pytest.approx(by_method["bico"] - by_method["zero-shot"])

    # What was used, and nothing that was not.
    assert bico.data.params["bico.others"] == "leave" and bico.data.params["completion"] == "partial"
    (zero,) = (child for child in children if child.data.tags["method"] == "zero-shot")
    assert not {"completion", "alpha"} & set(zero.data.params)
    assert "±" not in parent.data.tags["mlflow.note.content"]  # one draw


def test_a_cell_keeps_the_settings_that_were_used(bench: Bench) -> None:
    methods = ["bico:others=add:completion=svd", "bico", "naive", "none+head:penalty=2", "none+tune"]
    plan = make_plan(bench.config(methods=methods, completion="partial", alpha=0.5), bench.settings)
    found = {str(m): settings_of(plan, row("digits", str(m), 8, 0, 0.0)) for m in plan.methods}
    svd = found["bico:others=add:completion=svd"]
    assert svd == {
        "alpha": 0.5,
        "completion": "svd",
        "rank": "0",
        "bico.completion": "svd",
        "bico.rank": 0,
        "bico.rope": "free",
        "bico.depth": "one",
        "bico.whiten": 0.0,
        "bico.others": "add",
        "bico.strength": "fixed",
    }
    assert found["bico"] == {
        "alpha": 0.5,
        "completion": "partial",
        "rank": "128",
        "bico.completion": "partial",
        "bico.rank": 128,
        "bico.rope": "free",
        "bico.depth": "one",
        "bico.whiten": 0.0,
        "bico.others": "leave",
        "bico.strength": "fixed",
    }
    assert found["naive"] == {"alpha": 0.5}
    assert found["none+head:penalty=2"] == {"head.targets": "expert", "head.fit": "ridge", "head.penalty": 2.0}
    assert found["none+tune"]["tune.lr"] == plan.finetuning[1].lr and found["none+tune"]["tune.steps"] == 30
    assert settings_of(plan, row("digits", "zero-shot", 0, None, 0.0)) == {}


def test_a_retry_goes_on_with_the_run_it_began(ran: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow goes away in the middle of recording; the task is tried again and leaves one run, with each cell once."""
    monkeypatch.setattr(record_run, "retry_delay_seconds", [0.1])
    calls = []

    def describe(tracker: Tracker, run: str, text: str) -> None:
        calls.append(run)
        if len(calls) == 1:
            raise ConnectionLostError("MLflow at http://x refused: nobody answers.")
        original(tracker, run, text)

    original = Tracker.describe
    monkeypatch.setattr(Tracker, "describe", describe)
    result = ran.run(methods=["naive"], oracle=False)
    assert len(calls) == 2 and len(set(calls)) == 1
    client, run = MlflowClient(result.outputs["mlflow"]["uri"]), result.outputs["mlflow"]["run"]
    assert run == calls[0] and client.get_run(run).info.status == "FINISHED"
    children = client.search_runs([result.outputs["mlflow"]["experiment"]], f"tags.`mlflow.parentRunId` = '{run}'")
    assert sorted(child.data.tags["method"] for child in children) == ["expert", "naive", "zero-shot"]


def test_what_is_wrong_in_itself_is_not_tried_again(ran: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def describe(tracker: Tracker, run: str, text: str) -> None:
        calls.append(run)
        raise StoreError("MLflow refused: no permission.")

    monkeypatch.setattr(Tracker, "describe", describe)
    with pytest.raises(StoreError, match="no permission"):
        ran.run(methods=["naive"], oracle=False)
    assert len(calls) == 1


def test_only_silence_is_a_lost_connection(tmp_path: Path) -> None:
    tracker = Tracker(None, "x", tmp_path)
    silent = MlflowException("API request to http://127.0.0.1:9/api failed with exception: refused")
    for uri, error, kind in (
        ("http://127.0.0.1:9", silent, ConnectionLostError),
        ("http://127.0.0.1:9", MlflowException("no permission"), StoreError),
        ("sqlite:///x", silent, StoreError),
    ):
        tracker.uri = uri
        with pytest.raises(StoreError) as caught, tracker.talking():
            raise error
        assert type(caught.value) is kind


def test_versions_are_added_once_and_aliases_follow(ran: Bench) -> None:
    result = ran.run(methods=["naive"], oracle=False, export="all")
    run, models = result.outputs["mlflow"]["run"], result.outputs["models"]

    @flow
    def publish(run: str, alias: str | None = None, models: dict[str, str] = models) -> dict[str, str]:
        return register(ran.settings, run, "reader", alias, models)

    # There is one copy until somebody registers it; then MLflow's own stays as it is, whatever becomes of the first.
    client = MlflowClient(result.outputs["mlflow"]["uri"])
    assert not client.list_artifacts(run, "models") and client.list_artifacts(run, "cards")
    assert publish(run) == publish(run, "published") == {"reader": "1"}
    assert client.get_model_version_by_alias("reader", "published").run_id == run
    bare = ran.run(methods=["naive"], oracle=False, export="none")
    with pytest.raises(StoreError, match="has logged no model to register"):
        publish(bare.outputs["mlflow"]["run"], models={})
    with pytest.raises(StoreError, match="is not there any more and cannot be registered"):
        publish(bare.outputs["mlflow"]["run"], models={"gone": str(ran.folder / "gone")})


def test_a_long_stage_shows_how_far_it_is_and_a_short_one_does_not(api: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.progress, "EVERY", 0.0)
    ids = []

    @flow
    def stage(first: float) -> None:
        from prefect import runtime

        ids.append(str(runtime.flow_run.id))
        monkeypatch.setattr(tasks.progress, "FIRST", first)
        with reported("fine-tune", "steps", 4) as advance:
            for step in range(3):
                time.sleep(0.01)
                advance(step)

    stage(0.0)
    stage(60.0)
    (shown,) = artifacts(ids[0]).values()
    assert shown.type == "progress" and shown.key == "progress-fine-tune" and float(shown.data) == 100.0
    assert artifacts(ids[1]) == {}


def test_progress_that_nobody_can_receive_stops_no_work(api: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise httpx.ConnectError("nobody there")

    monkeypatch.setattr(tasks.progress, "create_progress_artifact", refuse)
    monkeypatch.setattr(tasks.progress, "FIRST", 0.0)

    @flow
    def stage() -> int:
        with reported("x", "things", 2) as advance:
            advance(1)
            return 7

    assert stage() == 7


@pytest.mark.parametrize(
    ("determined", "change", "verdict"),
    [
        ({"input": 1.0, "output_grad": 0.95}, 0.1, "well determined"),
        ({"input": 1.0, "output_grad": 0.6}, 0.1, "partly determined (output gradients)"),
        ({"input": 0.2, "output_grad": 0.6}, 0.1, "few directions (inputs)"),
        ({}, 0.1, "changed without maps"),
        ({"input": 1.0}, 0.0, "unchanged"),
    ],
)
def test_verdicts(determined: dict[str, float], change: float, verdict: str) -> None:
    layer = BlockReport("digits", "block-0", determined, change)
    assert layer.verdict == verdict
    assert layer.to_row()["verdict"] == verdict
    if determined == {"input": 0.2, "output_grad": 0.6}:
        assert "0 of 1 blocks" in worst([layer]) and "20 %" in worst([layer])
