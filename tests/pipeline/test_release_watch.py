"""A release comes out, a person is asked, and what the person says is done."""

import contextvars
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.client.schemas.filters import FlowRunFilter
from prefect.flow_runs import resume_flow_run

import flows.release_watch
from bico.errors import CheckpointError, ConfigError
from bico.models.releases import Release, newest_on_hub, releases_at
from bico.task_vector.merging import STRENGTHS
from flows.release_watch import WatchConfig, judge, put_together, release_watch
from flows.settings import Settings
from tasks.releases import RECORD, Record, records
from tests.flow_setup import Bench
from tests.pipeline.test_many_experts import write_expert
from tests.pipeline.test_recorded import artifacts
from tests.releases import write_release
from tests.rows import row


def watch(bench: Bench, **changes: object) -> WatchConfig:
    early, late = (write_expert(bench, f"{name}.safetensors", by) for name, by in (("early", 1.05), ("late", 1.2)))
    expert = {
        "source": str(bench.releases["a"]),
        "tasks": ["digits"],
        "methods": ["bico"],
        "samples": [4],
        "seeds": [0],
        "test_limit": 30,
        "experts": [f"digits={early}", f"digits={late}"],
        "rivals": "none",
    }
    values = {"releases": str(bench.folder / "releases"), "experts": {"ours": expert}, "out": bench.folder / "out"}
    return WatchConfig(**values | changes)


def answered(config: WatchConfig, settings: Settings, act: Callable[[str], None]) -> State:
    """Runs the watch; once it waits for a person, `act` gets its id."""
    ended: list[State] = []
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=lambda: context.run(lambda: ended.append(release_watch(config, settings, return_state=True)))
    )
    thread.start()
    with get_client(sync_client=True) as client:
        waiting: list = []
        while not waiting and thread.is_alive():
            time.sleep(0.5)
            waiting = client.read_flow_runs(flow_run_filter=FlowRunFilter(state={"type": {"any_": ["PAUSED"]}}))
    if waiting:
        act(str(waiting[0].id))
    thread.join(120)
    assert waiting and ended, "it has not waited for anybody"
    return ended[0]


def test_a_person_decides_on_every_release(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.release_watch, "POLL", 1)
    folder, config = bench.folder / "releases", watch(bench)
    shutil.copytree(bench.releases["b"], folder / "v9")

    def publish(run: str) -> None:
        # A second run beside it does not ask again.
        beside = release_watch(config, bench.settings, return_state=True)
        assert beside.name == "Waiting" and run in beside.message
        resume_flow_run(run, run_input={"publish": True, "comment": "looks well"})

    first = answered(config, bench.settings, publish)
    assert first.name == "Published" and first.message == "First release: there is none to compare with."
    (record,) = records(config.out)
    assert record.release == "v9" and record.published and record.comment == "looks well"
    assert [row.task for row in record.merged] == ["digits@early", "digits@late"] and not record.notes
    assert {row.strength for row in record.merged} <= {*STRENGTHS} and dict(record.versions) == {
        "bico-merged": "1", **{f"bico-ours-{row.model}": "1" for row in record.merged}
    }  # fmt: skip
    client, model = MlflowClient(record.runs["ours"]["uri"]), f"bico-ours-{record.merged[0].model}"
    assert client.get_model_version_by_alias(model, "published").run_id == record.runs["ours"]["run"]
    assert client.get_model_version_by_alias("bico-merged", "published").run_id == record.merged_run["run"]

    write_release(folder / "v10", seed=7)
    seen: dict[str, str] = {}

    def decline(run: str) -> None:
        seen["page"] = artifacts(run)["release"].data
        resume_flow_run(run, run_input={"publish": False})

    second = answered(config, bench.settings, decline)
    assert second.name == "Declined"
    assert "v9 (first) against v10 (second)" in seen["page"] and "| digits@early | 4 | 0 |" in seen["page"]
    assert "## All experts in one model" in seen["page"] and "| mean | | " in seen["page"]
    assert f"**{second.message}**" in seen["page"] and "ours in MLflow" in seen["page"]
    assert [r.published for r in records(config.out)] == [True, False]
    assert str(client.get_model_version_by_alias("bico-merged", "published").version) == "1"
    assert release_watch(config, bench.settings, return_state=True).name == "NothingNew"


def test_what_cannot_be_put_together_is_said_and_stops_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise ConfigError("models of different targets")

    monkeypatch.setattr(flows.release_watch, "plan_merge", refuse)
    monkeypatch.setattr(flows.release_watch, "get_run_logger", lambda: logging.getLogger("test"))
    config, release = watch(bench), Release("v1", bench.releases["b"])
    carried = record("v1", "1", 0.0)
    assert put_together(watch(bench, merge="none"), bench.settings, release, carried) == carried
    said = put_together(config, bench.settings, release, carried)
    assert said.notes == ("Not put together into one model: models of different targets",) and not said.merged
    assert said.notes[0] in judge(config, said)[1]
    with pytest.raises(ValueError, match="names what all experts are put together in"):
        watch(bench, experts={"merged": {}})


def record(name: str, digest: str, gain: float, **known: object) -> Record:
    rows = tuple(row(task, "bico", 20, 0, 50.0 + gain + n) for n, task in enumerate("abc"))
    return Record(name, f"releases/{name}", digest, rows, **known)


def test_the_last_published_release_is_what_a_new_one_is_compared_with(tmp_path: Path) -> None:
    config = WatchConfig(releases="x", experts={"one": {}}, out=tmp_path)
    new = record("v3", "3", 2.0)
    assert judge(config, new)[0].startswith("First release")
    record("v1", "1", 0.0, published=True).write(tmp_path / "v1")
    record("v2", "2", 9.0, published=False).write(tmp_path / "v2")
    new.write(tmp_path / "v3")
    verdict, table = judge(config, new)
    assert verdict.startswith("Yes, the second run is better: +2.00 points") and "## v1 (first) against v3" in table
    other = Record("v4", "releases/v4", "4", (row("z", "bico", 20, 0, 1.0),))
    assert judge(config, other)[0].startswith("Nothing to compare with v1")


def test_releases_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("v10", "v9", "v9.1"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "open_clip_config.json").write_text("{}")
    (tmp_path / "models" / "notes").mkdir()
    assert [release.name for release in releases_at(str(tmp_path / "models"), tmp_path)] == ["v9", "v9.1", "v10"]
    with pytest.raises(ConfigError, match="is no folder"):
        releases_at(str(tmp_path / "none"), tmp_path)
    (found,) = releases_at("hf:org/model", tmp_path, Release)
    assert found == Release("org/model", tmp_path)


def test_a_revision_on_the_hub_is_pinned_and_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    fetched = []

    class Api:
        def model_info(self, repository: str) -> object:
            return type("Info", (), {"sha": "0123456789abcdef"})

    def snapshot(repository: str, revision: str, local_dir: Path, allow_patterns: list[str]) -> None:
        fetched.append((repository, revision))
        local_dir.mkdir(parents=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    for _ in range(2):
        assert newest_on_hub("org/clip", tmp_path) == Release("clip@0123456789ab", tmp_path / "clip/0123456789abcdef")
    assert fetched == [("org/clip", "0123456789abcdef")]
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="hf:org/clip cannot be had"):
        newest_on_hub("org/clip", tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    record("v1", "1", 0.0).write(tmp_path / "v1")
    assert records(tmp_path) == [record("v1", "1", 0.0)]
    (tmp_path / "v1" / RECORD).write_text("{")
    with pytest.raises(ConfigError, match="not the record of a release"):
        records(tmp_path)


def test_a_mistake_in_an_expert_is_found_before_any_work(bench: Bench) -> None:
    shutil.copytree(bench.releases["b"], bench.folder / "releases" / "v1")
    good = watch(bench).experts["ours"]
    config = watch(bench, experts={"good": good, "bad": good | {"tasks": ["digit"], "experts": []}})
    state = release_watch(config, bench.settings, return_state=True)
    assert state.is_failed() and "digit" in state.message
    assert not list((bench.settings.home / "store").glob("final/*"))
