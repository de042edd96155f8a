"""The model that is written: chosen by held-out training samples, once on disk, in a folder that is its run's alone; and its page."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from bico.calibration.sampling import draw_samples
from bico.data.tasks import Prepared, get_task
from bico.errors import ConfigError, OutputError
from bico.evaluation.accuracy import accuracy
from bico.evaluation.held_out import hold_out
from bico.models.loading import load, resolve
from bico.reporting.choice import Choice
from flows.commands.report_cli import report
from flows.planning.plan import make_plan
from flows.records.results import record_of_run
from flows.transfer import transfer
from tests.flow_setup import Bench


def held_out_accuracy(folder: Path, seeds: list[int], samples: int) -> float:
    """Of a model on disk, on rows that no draw has looked at: without the flow."""
    task, model = get_task("digits"), load(resolve(str(folder)))
    train = task.open("train")
    taken = {int(row) for seed in seeds for row in draw_samples(len(train), samples, seed)}
    rows = hold_out(len(train), taken).rows
    assert len(rows) == 250 and not taken & set(rows)
    data = Prepared(train, model.prepare)
    head = model.head(task.class_names, task.prompts)
    return accuracy(model, [data.batch(torch.tensor(rows))], head)


def test_the_best_by_held_out_samples_is_written_once_with_its_page(ran: Bench) -> None:
    config = ran.config(export="best", oracle=False)
    result = transfer(config, ran.settings)
    choice = Choice.parse(result.outputs["chosen"]["digits"])
    ((name, folder),) = result.outputs["models"].items()
    assert name == choice.cell.folder and choice.candidates == 3
    assert result.stages["validate"] == {
        "computed": 4,
        "cached": 0,
    }  # bico at two counts, naive, and the target as it is
    assert choice.score == pytest.approx(held_out_accuracy(Path(folder), [0], 8))
    assert choice.start == pytest.approx(held_out_accuracy(ran.releases["b"], [0], 8))
    assert "chosen from 3 by" in (Path(folder) / "README.md").read_text()

    # One copy: the vector is the store's own file by another name, and MLflow has the card alone.
    vector = Path(folder) / "task-vector.safetensors"
    (stored,) = (p for p in (ran.folder / "home/store/final").glob("transfer-*/*.safetensors") if p.samefile(vector))
    run = result.outputs["mlflow"]["run"]
    client = MlflowClient(result.outputs["mlflow"]["uri"])
    kept = {entry.path for entry in client.list_artifacts(run)}
    assert stored and kept >= {"report.html", "run.json", "cards"} and "models" not in kept

    # The page is made again from the folder or from MLflow's run, the same to the letter.
    page = Path(result.outputs["page"]).read_text()
    record = record_of_run(str(config.out), ran.settings)
    assert record == record_of_run(run, ran.settings) and list(record.rows) == result.rows
    for place in (str(config.out), run):
        report(place, {"home": ran.settings.home}, ran.folder / "again", as_json=True)
        assert (ran.folder / "again" / "report.html").read_text() == page
    with pytest.raises(ConfigError, match=r"has no run\.json"):
        record_of_run(str(ran.folder), ran.settings)

    # The same again may stay, and finds everything; another run is refused before any work, and told what to do.
    again = transfer(config, ran.settings)
    assert again.outputs["models"] == result.outputs["models"]
    assert not any(counts["computed"] for counts in again.stages.values())
    other = config.model_copy(update={"samples": [4]})
    with pytest.raises(OutputError, match="holds the models of another run .* give another folder, or delete"):
        make_plan(other, ran.settings)
    (config.out / "run.json").unlink()
    with pytest.raises(OutputError, match="a run that has left no record"):
        make_plan(config, ran.settings)
    make_plan(other.model_copy(update={"out": ran.folder / "elsewhere"}), ran.settings)


def test_tables_of_an_earlier_run_are_replaced(ran: Bench) -> None:
    out = ran.folder / "out"
    first = ran.run(oracle=False)
    assert first.outputs["models"] == {} and first.outputs["chosen"] == {} and "validate" not in first.stages
    ran.run(oracle=False, samples=[8])
    assert {row["samples"] for row in json.loads((out / "run.json").read_text())["rows"]} == {0, 8}
