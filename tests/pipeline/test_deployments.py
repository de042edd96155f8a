"""Every deployment fits its flow; what the scheduled ones do."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.schedules import CronSchedule

import flows.nightly
from flows.cache_gc import cache_gc
from flows.config import make_config
from flows.nightly import reproduce_nightly
from flows.release_watch import WatchConfig
from flows.settings import Settings
from storage.artefacts import ArtefactStore
from storage.gc import inventory, note_run
from tests.flow_setup import Bench
from tests.pipeline.test_recorded import artifacts

ROOT = Path(__file__).resolve().parents[2]
CONTENT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {entry["name"]: entry for entry in CONTENT["deployments"]}


def flow_of(entry: dict[str, Any]) -> Flow:
    file, name = entry["entrypoint"].split(":")
    assert (ROOT / file).is_file()
    return getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_fits_its_flow(name: str) -> None:
    entry = DEPLOYMENTS[name]
    flow = flow_of(entry)
    assert flow.name == name
    flow.validate_parameters(entry["parameters"])  # raises where one is missing, unknown or of another type
    assert entry["work_pool"]["job_variables"]["env"]["DO_NOT_TRACK"] == "true"
    assert all(CronSchedule(**schedule) for schedule in entry.get("schedules", []))  # raises for what is no cron
    assert bool(entry.get("schedules")) == (name != "transfer")


def test_the_experts_of_the_watch_are_transfers() -> None:
    config = WatchConfig(**DEPLOYMENTS["release-watch"]["parameters"]["config"])
    found = config.transfers(SimpleNamespace(name="v1", folder=Path("releases/v1")))  # type: ignore[arg-type]
    assert set(found) == set(config.experts) and all(one.target == "releases/v1" for one in found.values())
    assert make_config(DEPLOYMENTS["transfer"]["parameters"]["config"], "prefect.yaml").source == "zoo:mini-a"


def test_garbage_is_collected_and_shown(api: None, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    store = ArtefactStore(settings.store)
    for name in ("maps-1", "maps-2"):
        store.get_or_create(name, lambda folder: (folder / "x").write_bytes(b"x" * 5))
    assert cache_gc("0s", settings=settings) == {"deleted": 0, "in_use": 2, "bytes": 0}  # a living store uses them
    del store
    note_run(ArtefactStore(settings.store), "some-run", ["maps-1"])
    assert cache_gc("1d", settings=settings)["deleted"] == 0
    assert cache_gc("0s", dry_run=True, settings=settings)["deleted"] == 1
    ended = cache_gc("0s", settings=settings, return_state=True)
    assert ended.result() == {"deleted": 1, "in_use": 0, "bytes": 5}  # what a run has noted stays
    shown = artifacts(str(ended.state_details.flow_run_id))
    assert "1 artefacts went" in shown["cache-gc"].data and '"stage": "maps"' in shown["cache-gc-stages"].data
    assert [artefact.key for artefact in inventory(ArtefactStore(settings.store))] == ["maps-1"]
    with pytest.raises(ValueError, match="--older-than soon"):
        cache_gc("soon", settings=settings)


def night(monkeypatch: pytest.MonkeyPatch, bench: Bench, name: str, accuracy: float) -> Any:
    """A night in which a table has two cells."""

    def reproduce(recipe: Any, mini: bool, data: list, settings: Settings, out: Path, command: str) -> None:
        seen.append(settings.store)
        Path(settings.store).mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True)
        cells = [f"pair,digits,bico,100,0,{accuracy}", "pair,digits,zero-shot,0,,20.0"]
        (out / f"{recipe.label(mini)}.csv").write_text(
            "\n".join(["transfer,task,method,samples,seed,accuracy", *cells])
        )

    seen: list[str] = []
    monkeypatch.setattr(flows.nightly, "reproduce", reproduce)
    monkeypatch.setattr(flows.nightly, "check", lambda *args: None)
    monkeypatch.setattr(flows.nightly, "_night", lambda: name)
    state = reproduce_nightly(
        ["tableG"], out=bench.folder / "nightly", fresh=True, settings=bench.settings, return_state=True
    )
    assert "nightly" in seen[0] and not Path(seen[0]).exists()  # a store of its own, gone in the morning
    return state


def test_a_night_that_differs_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = night(monkeypatch, bench, "2026-01-01", 50.0)
    assert first.is_completed() and first.result() == {"tableG-mini": None}
    second = night(monkeypatch, bench, "2026-01-02", 50.0)
    assert second.is_completed() and second.result()["tableG-mini"]["answer"] == "undecided"
    third = night(monkeypatch, bench, "2026-01-03", 49.0)
    assert third.is_failed() and "tableG-mini" in third.message
    page = artifacts(str(third.state_details.flow_run_id))["nightly"].data
    assert "1 of 2 cells have moved" in page and "| BiCo | 1 | -1.00 |" in page
    assert night(monkeypatch, bench, "2026-01-04", 49.0).is_completed()  # compared with the last one, not the first
