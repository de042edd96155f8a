"""What must not creep back in the stages: bytes that are written twice, maps that are solved twice, tensors that pile up."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger
from torch import Tensor

import bico.calibration.covariances
import tasks.collect
import tasks.procrustes
from bico.calibration.budget import Budget
from bico.calibration.memory import GIGABYTE, covariance_bytes, covariance_shapes, plan_memory
from bico.calibration.signals import Signal
from bico.linalg.procrustes import AlignmentMap, MapRule
from bico.models.loading import resolve
from storage.artefacts import folder_of
from storage.keys import Ref
from tasks.artefacts import iterate_maps
from tasks.cached_stage import Workspace
from tasks.calibration import Calibration
from tasks.collect import Pass
from tasks.inputs import TaskRef, open_model
from tasks.maps import BlockMaps, SignalMaps
from tasks.procrustes import solve_maps
from tests.tiny import count_alive, count_passes

SIGNALS = (Signal.INPUT, Signal.OUTPUT, Signal.OUTPUT_GRAD)
SAMPLES = (4, 8, 12)
BUDGETS = tuple(Budget(count, size=count) for count in SAMPLES)


class Stages:
    """Collects and solves without a flow around it."""

    def __init__(self, releases: dict[str, Path], store: Path, memory: float | None = None) -> None:
        self.space = Workspace(str(store), memory=memory)
        files = [resolve(str(releases[name])) for name in ("a", "wide")]
        self.calibration = Calibration(*files, TaskRef("digits"), BUDGETS, seed=0, batch_size=4)
        self.source, self.target = (open_model(file, "cpu") for file in files)

    def collect(self) -> dict[Signal, Ref]:
        one = Pass(self.calibration, SIGNALS, None)
        made = tasks.collect._collect(self.space, one)
        return {signal: made[one.key(signal)][0] for signal in SIGNALS}

    def block(self, collected: dict, group: str) -> BlockMaps:
        sites = self.target.sites
        parts = [
            SignalMaps.of(collected[signal], signal, sites, group, SAMPLES, MapRule())
            for signal in (Signal.INPUT, Signal.OUTPUT_GRAD)
        ]
        return BlockMaps(group, tuple(parts))


@pytest.fixture
def stages(releases: dict[str, Path], tmp_path: Path) -> Stages:
    return Stages(releases, tmp_path / "store")


def chunk_bytes(folder: Path) -> int:
    """Bytes of numbers, without the descriptions of arrays."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".json")


def every_map(stages: Stages, part: SignalMaps) -> Iterator[tuple[str, AlignmentMap]]:
    names = [name for count in SAMPLES for name in part.names(count)]
    return iterate_maps(stages.space.artefacts.ref(part.key), names)


def test_a_sweep_is_one_pass_and_writes_every_covariance_once(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_passes(monkeypatch)
    collected = stages.collect()
    batches = SAMPLES[-1] // stages.calibration.batch_size
    assert passes == {"forward": 2 * batches, "backward": 2 * batches}
    sites = stages.source.sites, stages.target.sites, stages.target.sites
    for signal, ref in collected.items():
        assert chunk_bytes(folder_of(ref) / "covariances") == len(SAMPLES) * covariance_bytes(*sites, {signal: None})
    stages.collect()
    assert passes == {"forward": 2 * batches, "backward": 2 * batches}


def test_a_block_solves_and_writes_one_map_per_distinct_signal_and_holds_one_covariance(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = stages.block(stages.collect(), "block-0")
    alive = count_alive(monkeypatch, tasks.procrustes)
    with disable_run_logger():
        solve_maps.fn(stages.space, block)
    # q, k and v share their input: four inputs and six gradients
    assert len(alive) == len(SAMPLES) * (4 + 6)
    assert max(alive) <= 2  # the one that is solved, and the one that the loop has not let go of
    sites = [site for site in stages.target.sites if site.group == "block-0"]
    for part in block.parts:
        shapes = covariance_shapes(stages.source.sites, stages.target.sites, sites, [part.signal]).values()
        kept = sum(one.rank for _, one in every_map(stages, part))
        expected = sum(4 * one.rank * sum(one.shape) + 8 * min(one.shape) for _, one in every_map(stages, part))
        assert 0 < kept <= len(SAMPLES) * sum(min(shape) for shape in shapes)
        assert chunk_bytes(stages.space.artefacts.folder(part.key) / "maps") == expected
    with disable_run_logger():
        solve_maps.fn(stages.space, block)
    assert len(alive) == len(SAMPLES) * (4 + 6)


class Peak:
    """The largest number of covariances that are alive at once, sums and snapshots."""

    def __init__(self) -> None:
        self.most, self.seen = 0, {}

    def look(self, covariances: dict) -> None:
        for value in covariances.values():
            self.seen[id(value)] = weakref.ref(value)
        self.most = max(self.most, sum(ref() is not None for ref in self.seen.values()))


def live_covariances(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> int:
    peak = Peak()
    clone, stream = Tensor.clone, tasks.collect.cross_covariances
    sums: dict[int, weakref.ref] = {}

    def cloned(self: Tensor, **options: Any) -> Tensor:
        sums[id(self)] = weakref.ref(self)  # what is copied at a snapshot is a running sum
        return clone(self, **options)

    def looked(*args: Any, **options: Any) -> Iterator[tuple[int, dict]]:
        for samples, covariances in stream(*args, **options):
            peak.look({**covariances, **{("sum", n): ref() for n, ref in sums.items() if ref() is not None}})
            yield samples, covariances

    monkeypatch.setattr(bico.calibration.covariances.Tensor, "clone", cloned)
    monkeypatch.setattr(tasks.collect, "cross_covariances", looked)
    stages.collect()
    return peak.most


def test_a_sweep_holds_the_sums_and_one_snapshot(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = stages.source.sites, stages.target.sites, stages.target.sites
    distinct = len(covariance_shapes(*sites, SIGNALS))
    assert live_covariances(stages, monkeypatch) == 2 * distinct


def test_a_budget_bounds_the_covariances_in_flight(
    releases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(releases, tmp_path / "store")
    args = stages.source, stages.target, SIGNALS, stages.calibration.batch_size, len(SAMPLES)
    whole = plan_memory(*args)
    budget = (whole.peak - whole.covariances / 2) / GIGABYTE
    plan = plan_memory(*args, budget)
    sites = stages.source.sites, stages.target.sites
    largest = max(len(covariance_shapes(*sites, part, SIGNALS)) for part in plan.passes)
    assert len(plan.passes) > 1
    stages = Stages(releases, tmp_path / "store", budget)
    assert live_covariances(stages, monkeypatch) == 2 * largest
