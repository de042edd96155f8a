"""What must have come of the rehearsal: states, runs, numbers, and no secret anywhere."""

import csv
import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from tests.rehearsal.acts import TRANSFER
from tests.rehearsal.stage import BIN, SECRET, Stage

ALONE = ("BICO_STORE", "BICO_DASK_SCHEDULER", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")


def recorded(stage: Stage, runs: dict[str, str]) -> dict[str, Run]:
    """MLflow has one finished run per transfer, a child per cell, and the model; returns the runs."""
    client = MlflowClient(tracking_uri=stage.mlflow)
    experiment = client.get_experiment_by_name("bico").experiment_id
    found = {}
    for name, flow_run in runs.items():
        (run,) = client.search_runs([experiment], f"tags.`prefect.flow_run` = '{flow_run}'")
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        assert run.info.status == "FINISHED" and {child.info.status for child in children} == {"FINISHED"}
        assert len(children) == len(rows(stage, name)), len(children)
        (model,) = client.list_artifacts(run.info.run_id, "cards")
        files = {Path(entry.path).name for entry in client.list_artifacts(run.info.run_id, model.path)}
        assert files == {"README.md"}, files  # the weights are in --out, once
        gain = run.data.metrics["over zero-shot/bico"]
        stage.say(
            f"MLflow, {name}: 1 run with {len(children)} children and a model; BiCo over zero-shot {gain:+.2f} points"
        )
        found[name] = run
    return found


def rows(stage: Stage, name: str) -> list[dict[str, str]]:
    with (stage.root / "out/transfer" / name / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_as_alone(stage: Stage, targets: dict[str, str], results: dict[str, Run]) -> None:
    """The first transfer once more with nothing of all this: a folder, SQLite, and a cluster of its own."""
    name = next(iter(targets))
    config = stage.folder / "alone.yaml"
    config.write_text(json.dumps(TRANSFER | {"target": targets[name]}))  # JSON is YAML
    out, home = stage.folder / "alone", stage.folder / "alone-home"
    command = [f"{BIN}/python", "-m", "flows.cli", "transfer", "--config", str(config), "--out", str(out), "--json"]
    printed = stage.run(*command, without=ALONE, BICO_HOME=str(home), PREFECT_HOME=str(stage.folder / "prefect-alone"))
    assert json.loads(printed)["stages"]["cached"] == 0
    with (out / "results.csv").open(newline="") as file:
        alone = list(csv.DictReader(file))
    assert alone == rows(stage, name), f"{alone} is not {rows(stage, name)}"
    stage.say(f"The same transfer alone, with nothing running: the same {len(alone)} rows, digit for digit")


def compared(stage: Stage, results: dict[str, Run]) -> None:
    ids = [run.info.run_id for run in results.values()]
    printed = stage.run(f"{BIN}/python", "-m", "flows.cli", "compare", *ids)
    assert "| BiCo | 2 |" in printed and ("one task" in printed or "Neither" in printed), printed
    stage.say(f"bico compare RUN_A RUN_B: {printed.strip().splitlines()[-1]}")


def published(stage: Stage) -> None:
    """What was answered is what holds: one version, under the alias, of the release that was published."""
    decisions = {
        path.parent.name: json.loads(path.read_text())["published"]
        for path in (stage.root / "out/releases").glob("*/record.json")
    }
    assert decisions == {"2026-10": True, "2026-11": False}, decisions
    found = MlflowClient(tracking_uri=stage.mlflow).get_model_version_by_alias("bico-digits", "published")
    assert str(found.version) == "1" and found.tags["target"].endswith("2026-10"), found
    stage.say("Registered: bico-digits version 1, alias published, of 2026-10; nothing of 2026-11")


def no_secret(stage: Stage) -> None:
    """The bucket's key is in no log, no database, no artefact."""
    looked, size = 0, 0
    for path in stage.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert SECRET.encode() not in content, f"the bucket's key is in {path}"
            looked, size = looked + 1, size + len(content)
    assert looked > 100
    stage.say(f"The bucket's secret key is in none of {looked} files ({size / 1e6:.0f} MB): logs, databases, artefacts")
