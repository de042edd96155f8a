"""Tiny real models, and settings for the whole suite."""

import os

# Before torch, prefect, dask and mlflow are imported: no telemetry, no log noise, no fight over two cores. What a test
# starts inherits them.
os.environ |= {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DASK_LOGGING__DISTRIBUTED": "warning",
    # As the command line has them: that Dask looks at itself all the time costs more than what the tests give it to do.
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "false",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    # Once in some hundred flows a request to Prefect's server is never answered; the client asks again after this time, a
    # minute unless told.
    "PREFECT_API_REQUEST_TIMEOUT": "20",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor

from bico.models.clip.vit import ClipViT
from tests.distribution import check_shared, rank
from tests.tiny import tiny_clip

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
MARKS = {
    "bico": "library",  # examples in docstrings
    "tests/library": "library",
    "tests/zoo_build": "zoo_build",
    "tests/storage": "storage",
    "tests/pipeline": "pipeline",
    "tests": "project",  # the folder of that name, and what all share
}
hypothesis.settings.register_profile("bico", deadline=None, max_examples=25)  # the first SVD call takes seconds
hypothesis.settings.load_profile("bico")
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings, on a busy machine by far


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test by its folder, and begins with the longest groups."""
    for item in items:
        place = item.path.relative_to(ROOT).as_posix()
        item.add_marker(next(mark for folder, mark in MARKS.items() if place.startswith(f"{folder}/")))
        check_shared(place, getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: rank(item.path.relative_to(ROOT).as_posix()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.distribution import scheduling  # xdist is there, who asks this

    return scheduling(config, log)


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
