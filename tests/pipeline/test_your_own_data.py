"""docs/your-own-data.md does what it says: its folders are made, and its commands are planned."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from bico.data.reading import KEYS
from flows.commands import single_cli
from flows.config import READING
from flows.planning.plan import Plan
from flows.single import Subject
from tests.planned import planner

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-own-data.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders that the page shows, in a working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    for place in ("birds/train/{}/2.png", "birds/train/{}/1.png", "birds/test/{}/1.png"):
        for number, name in enumerate(("crow", "great_tit")):
            (path := folder / place.format(name)).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number * 90, 9, 9)).save(path)
    for name in ("oak", "elm"):
        (folder / "leaves" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / "leaves" / name / f"{number}.png")
    mail, signs = (next(block for block in blocks("text") if word in block) for word in ("ham", "file_name"))
    (folder / "mail").mkdir()
    (folder / "signs" / "pictures").mkdir(parents=True)
    for row in signs.splitlines():
        Image.new("L", (8, 8)).save(folder / "signs" / json.loads(row)["file_name"])
    for split in ("train", "test"):
        (folder / "mail" / f"{split}.csv").write_text(mail)
        (folder / "signs" / f"{split}.jsonl").write_text(signs)
    sky = datasets.Dataset.from_dict({"photo": [Image.new("L", (8, 8))] * 4, "label": ["c", "s"] * 2})
    datasets.DatasetDict(train=sky, test=sky).save_to_disk(folder / "weather")
    (folder / "weather" / "task.yaml").write_text(blocks("yaml")[0])
    return folder


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Plans a command, and does no more: no server, nothing computed."""
    return planner(monkeypatch, tmp_path / "home")


def test_the_commands_of_the_page_plan_what_it_says(data: Path, planned: Callable[[str], Any]) -> None:
    found = []
    for command in COMMANDS:
        subject: Subject = planned(command)
        (ref,) = subject.tasks.values()
        found.append(ref.open())
    birds, leaves, mail, put, signs, weather = found
    assert birds.class_names == ("crow", "great tit") and (birds.sizes["train"], birds.sizes["test"]) == (4, 2)
    assert (leaves.sizes["train"], leaves.sizes["test"]) == (8, 2) and leaves.identity["test_share"] == 0.2
    assert mail.class_names == ("ham", "spam") and mail.open("train").example(1) == "mail text: you have won a prize"
    assert put.open("test").example(0) == "an e-mail: see you at the station" and mail.identity != put.identity
    assert signs.class_names == ("stop", "turn right") and signs.open("train").labels.tolist() == [0, 1]
    assert weather.class_names == ("cloudy", "sunny") and weather.prompts[1] == "a {} day."


def test_its_python_prints_what_it_shows(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[0], "your-own-data.md", "exec"), {})
    assert capsys.readouterr().out == blocks("text")[0]


def test_it_names_every_key_and_option() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:`--([\w-]+)[^|]*)?\|", PAGE, re.MULTILINE))
    assert set(rows) == set(KEYS)
    assert {key for key, option in rows.items() if option} == set(READING)
    spelt = {field.name: field.names[0] for field in single_cli.READ.found.values()}
    assert {key: f"--{option}" for key, option in rows.items() if option} == spelt


def test_a_transfer_reads_data_likewise_and_says_what_it_did(
    data: Path, planned: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "birds" / "test").rename(data / "birds" / "val")
    (data / "birds").rename(data / "birds, {b}")
    pair = "bico transfer --source zoo:mini-a --target zoo:mini-a --samples 2 --methods bico --no-baselines --data"
    plan: Plan = planned(f"{pair} 'data/birds, {{b}}' --task 'birds, {{b}}' --prompt 'a, {{}}' --prompt 'b {{}}'")
    assert list(plan.tasks) == ["birds, {b}"] and plan.tasks["birds, {b}"].open().prompts == ("a, {}", "b {}")
    said = capsys.readouterr().err
    assert said.count("there is no test split; `val` is measured on.") == 1
    assert planned(f"{pair} 'data/birds, {{b}}'").tasks.keys() == {"birds, {b}"}
