import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from sqlalchemy import Engine, text

from bico.errors import StoreError
from storage import tracking
from storage.tracking import PARAM_CHARS, Tracker


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # One database for all tests: creating its tables is what takes the time. Odd characters, since homes have them.
    return tmp_path_factory.mktemp("a home #1")


@pytest.fixture
def tracker(home: Path, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(None, request.node.name, home)


def client(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracking_uri=tracker.uri)


def get(tracker: Tracker, run: str) -> Run:
    return client(tracker).get_run(run)


def test_parent_and_children_as_mlflow_sees_them(tracker: Tracker) -> None:
    parent = tracker.start_parent("demo", {"source": "mini-a", "samples": [10, 50]}, {"version": 1})
    assert get(tracker, parent).info.status == "RUNNING"
    runs = [
        tracker.log_child(parent, f"digits/bico/{n}", {"N": n}, {"accuracy": n / 100, "rank": 7}, {"method": "bico"})
        for n in (10, 50)
    ]
    tracker.finish(parent)

    found = client(tracker).search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.info.run_id for run in found} == set(runs)
    child = get(tracker, runs[1])
    assert child.info.run_name == "digits/bico/50"
    assert child.info.status == "FINISHED"
    assert child.data.params == {"N": "50"}
    assert child.data.metrics == {"accuracy": 0.5, "rank": 7.0}
    assert child.data.tags["method"] == "bico"
    top = get(tracker, parent)
    assert top.info.status == "FINISHED"
    assert top.data.params == {"source": "mini-a", "samples": "[10, 50]"}
    assert top.data.tags["version"] == "1"


def test_a_retry_writes_no_second_child(tracker: Tracker, home: Path) -> None:
    parent = tracker.start_parent("demo")
    first = tracker.log_child(parent, "digits", metrics={"accuracy": 0.5})
    assert tracker.log_child(parent, "digits", metrics={"accuracy": 0.5}) == first
    assert tracker.log_child(parent, "shapes") != first
    # nor does another process that takes over
    assert Tracker(None, tracker.experiment, home).log_child(parent, "digits") == first
    # under another parent the name is free
    assert tracker.log_child(tracker.start_parent("again"), "digits") != first


def test_metrics_can_be_added_and_failure_is_a_status(tracker: Tracker) -> None:
    parent = tracker.start_parent("demo")
    tracker.log_metrics(parent, {"stages.computed": 3})
    tracker.finish(parent, "FAILED")
    assert get(tracker, parent).data.metrics == {"stages.computed": 3.0}
    assert get(tracker, parent).info.status == "FAILED"


def test_many_parameters_are_written_in_parts(tracker: Tracker) -> None:
    params = {f"p{i}": i for i in range(250)}
    run = tracker.start_parent("demo", params)
    assert get(tracker, run).data.params == {name: str(value) for name, value in params.items()}


def test_long_values_are_cut_and_stay_distinct(tracker: Tracker) -> None:
    run = tracker.start_parent("demo", {"a": "x" * 999 + "a", "b": "x" * 999 + "b", "fits": "y" * PARAM_CHARS})
    params = get(tracker, run).data.params
    assert len(params["a"]) <= PARAM_CHARS
    assert params["a"] != params["b"]
    assert params["fits"] == "y" * PARAM_CHARS


def test_secrets_are_masked(tracker: Tracker) -> None:
    secret = "hunter2"
    run = tracker.start_parent(
        "demo",
        {"hf_token": secret, "PASSWORD": secret, "s3.secret": secret, "api_key": secret, "tokens": 50, "token_grid": 7},
        {"store": f"s3://user:{secret}@host/path", "token": secret},
    )
    data = get(tracker, run).data
    assert secret not in json.dumps([data.params, data.tags])
    assert data.params["tokens"] == "50"
    assert data.params["token_grid"] == "7"
    assert data.tags["store"] == "s3://***@host/path"


def files(tracker: Tracker, run: str, folder: str | None = None) -> dict[str, Path]:
    listed = client(tracker).list_artifacts(run, folder)
    return {f.path: Path(client(tracker).download_artifacts(run, f.path)) for f in listed if not f.is_dir}


def test_files_figures_and_tables_lie_under_home(tracker: Tracker, home: Path, tmp_path: Path) -> None:
    run = tracker.start_parent("demo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.yaml").write_text("a: 1")
    tracker.log_artifact(run, tmp_path / "folder" / "config.yaml", "inputs")
    tracker.log_artifact(run, tmp_path / "folder")
    tracker.log_figure(run, Figure(), "accuracy.png")
    rows = [{"task": "digits", "accuracy": 0.5}, {"task": "shapes", "seed": 1}]
    tracker.log_table(run, rows, "results.json")
    tracker.log_table(run, rows, "results.json")  # a retry: replaced, not doubled

    found = files(tracker, run)
    assert found.keys() == {"config.yaml", "accuracy.png", "results.json"}
    assert files(tracker, run, "inputs")["inputs/config.yaml"].read_text() == "a: 1"
    assert found["accuracy.png"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(found["results.json"].read_text()) == {
        "columns": ["task", "accuracy", "seed"],
        "data": [["digits", 0.5, None], ["shapes", None, 1]],
    }
    assert json.loads(get(tracker, run).data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "results.json", "type": "table"}
    ]
    assert get(tracker, run).info.artifact_uri.startswith(home.as_uri())
    assert len(list(home.rglob("results.json"))) == 1


def test_second_table_is_known_beside_the_first(tracker: Tracker) -> None:
    run = tracker.start_parent("demo")
    tracker.log_table(run, [{"a": 1}], "one.json")
    tracker.log_table(run, [], "two.json")
    tables = json.loads(get(tracker, run).data.tags["mlflow.loggedArtifacts"])
    assert [table["path"] for table in tables] == ["one.json", "two.json"]


def test_experiment_is_found_again(tracker: Tracker, home: Path) -> None:
    assert Tracker(None, tracker.experiment, home).experiment_id == tracker.experiment_id


def test_nothing_is_written_to_the_working_directory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(None, "elsewhere", home)
    tracker.log_figure(tracker.start_parent("demo"), Figure(), "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_new_database_is_created_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    file = tmp_path / "mlflow.db"

    def create(engine: Engine) -> None:
        began.append(engine.url.database)
        assert not file.exists()  # others must not see it yet
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE runs (id)"))
        time.sleep(0.1)

    monkeypatch.setattr(tracking, "_initialize_tables", create)
    threads = [threading.Thread(target=tracking._ready, args=(file,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert began == [f"{file}.new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_database_keeps_a_write_ahead_log(tracker: Tracker, home: Path) -> None:
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_killed_creation_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db.new").write_text("half a database")
    monkeypatch.setattr(tracking, "_initialize_tables", lambda engine: engine.connect().close())
    tracking._ready(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db.new").exists()


def test_experiment_that_another_process_creates_first(
    tracker: Tracker, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = MlflowClient.get_experiment_by_name
    answers = iter([None])  # not there when we look, but when we create it
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda self, name: next(answers, look(self, name)))
    assert Tracker(None, tracker.experiment, home).experiment_id == tracker.experiment_id


def test_experiment_that_cannot_be_created_is_an_error(home: Path) -> None:
    with pytest.raises(StoreError, match="refused .*[Ee]xperiment name"):
        Tracker(None, "", home)


def test_telemetry_is_off_and_imports_are_quiet() -> None:
    code = "import storage.tracking; from mlflow.telemetry.utils import is_telemetry_disabled as d; print(d())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "DO_NOT", "CI", "PYTEST"))}
    out = subprocess.run(
        [sys.executable, "-c", code],
        # A value that Prefect takes for yes and MLflow does not.
        env={**environment, "DO_NOT_TRACK": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=True,
        text=True,
    )
    assert (out.stdout, out.stderr) == ("True\n", "")


def test_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    with pytest.raises(StoreError, match=r"MLflow at sqlite:///.*mlflow\.db refused .*check the address"):
        Tracker(None, "x", tmp_path)


def test_folder_in_the_place_of_the_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(StoreError, match="refused .*Is a directory"):
        Tracker(None, "x", tmp_path)


def test_home_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="refused .*Not a directory"):
        Tracker(None, "x", tmp_path / "file" / "home")


def test_unknown_address_is_an_error_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"MLflow at nowhere://\*\*\*@host refused") as caught:
        Tracker("nowhere://user:hunter2@host", "x", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_unknown_run_is_an_error(tracker: Tracker) -> None:
    with pytest.raises(StoreError, match="refused"):
        tracker.finish("0" * 32)
