"""Tiny real models, and settings for the whole suite."""

import os

# Before torch, prefect, dask and mlflow are imported: no telemetry, no log noise, no fight over two cores. What a test
# starts inherits them.
os.environ |= {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DASK_LOGGING__DISTRIBUTED": "warning",
    "HF_HUB_OFFLINE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

from pathlib import Path

import hypothesis
import pytest
import torch
from torch import Tensor

from bico.models.clip.vit import ClipViT
from tests.tiny import tiny_clip

pytest_plugins = ["tests.places"]

ROOT = Path(__file__).resolve().parents[1]
MARKS = {
    "bico": "library",  # examples in docstrings
    "tests/library": "library",
    "tests/zoo_build": "zoo_build",
    "tests/storage": "storage",
    "tests/faults": "storage",
    "tests/pipeline": "pipeline",
    "tests/project": "project",
}
SERVICES = {"api", "scheduler"}
SECOND_HALF = {"test_flow", "test_flow_methods", "test_flow_beyond", "test_figures"}
"""Modules of flows that the second of two processes runs: about half of the time."""
DRAWN = {"test_data_tasks", "test_pictures", "test_zoo", "test_quality"}
"""Modules that look at the generated pictures: drawing them takes seconds, once in a process."""
FIRST = ("flows-1", "flows-2", "test_offline", "test_server", "drawn", "test_notebooks", "bucket")
"""The longest groups, to begin with, so that none is left when the others are through."""

hypothesis.settings.register_profile("bico", deadline=None, max_examples=25)  # the first SVD call takes seconds
hypothesis.settings.load_profile("bico")
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings, on a busy machine by far


def group_of(item: pytest.Item) -> str:
    """Tests of one group run in one process (`--dist loadgroup`), so that a server or cluster is started once in each."""
    names, module = set(getattr(item, "fixturenames", ())), item.path.stem
    if SERVICES & names:
        return "flows-2" if module in SECOND_HALF else "flows-1"
    if {"s3", "place"} & names:
        return "bucket"
    if module in DRAWN:
        return "drawn"
    return module  # whose fixtures it shares


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test by its folder, groups those that share a service, and begins with the longest groups."""
    groups = {}
    for item in items:
        place = item.path.relative_to(ROOT).as_posix()
        item.add_marker(next(mark for folder, mark in MARKS.items() if place.startswith(f"{folder}/")))
        groups[item] = group_of(item)
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    items.sort(key=lambda item: FIRST.index(groups[item]) if groups[item] in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def source() -> ClipViT:
    return tiny_clip(seed=1)


@pytest.fixture
def target() -> ClipViT:
    return tiny_clip(seed=2)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(12) % 5
