"""Tiny real models, and settings for the whole suite."""

import os

# Before torch, prefect, dask and mlflow are imported: no telemetry, no log noise, no fight over two cores.
os.environ |= {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DASK_LOGGING__DISTRIBUTED": "warning",
    "HF_HUB_OFFLINE": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

import hypothesis
import pytest
import torch
from torch import Tensor

from bico.models.clip.vit import ClipViT
from tests.tiny import tiny_clip

pytest_plugins = ["tests.flow_setup", "tests.places"]

hypothesis.settings.register_profile("bico", deadline=None, max_examples=25)  # the first SVD call takes seconds
hypothesis.settings.load_profile("bico")
torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings, on a busy machine by far


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
