"""What every timed benchmark shares: medians, peak memory, the machine, and models with random weights."""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import open_clip
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor

from bico.calibration.signals import SignalKey
from bico.linalg.matmul import product
from bico.linalg.procrustes import AlignmentMap, MapRule
from bico.methods import Gathered
from bico.models.clip.vit import ClipViT
from bico.reporting import provenance

A = TypeVar("A")
T = TypeVar("T")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Architecture = str | dict[str, Any]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
}


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder on the disk of this project, which that of temporary files need not be."""
    Path("out").mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir="out")


@contextmanager
def workers_of_one_thread(count: int, work: Callable[[A], Any], example: A) -> Iterator[Pool]:
    """Processes that have done such work before, so imported what it needs, and wait."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with patch.dict(os.environ, threads), torch.multiprocessing.get_context("spawn").Pool(count) as pool:
        pool.map(work, [example] * 4 * count, chunksize=1)
        yield pool


def cut(architecture: str, layers: int) -> dict[str, Any]:
    """The first blocks of a published image tower at full width, beside a text tower that costs nothing."""
    found = open_clip.get_model_config(architecture)
    return {
        "embed_dim": found["embed_dim"],
        "vision_cfg": found["vision_cfg"] | {"layers": layers},
        "text_cfg": TINY["text_cfg"],
    }


PAIRS: dict[str, tuple[Architecture, Architecture]] = {
    "vitb16-vitb16": ("ViT-B-16", "ViT-B-16"),
    "vitb16-vitb16plus": ("ViT-B-16", "ViT-B-16-plus-240"),
    "vitb16-vitl14": ("ViT-B-16", "ViT-L-14"),
    "vitl14-vitl14": ("ViT-L-14", "ViT-L-14"),
    "vitb16-cut": (cut("ViT-B-16", 2), cut("ViT-B-16", 2)),
    "tiny": (TINY, TINY),
}


def random_model(architecture: Architecture, seed: int, device: str = "cpu") -> ClipViT:
    """A model of open_clip's own class with random weights: speed does not depend on them."""
    torch.manual_seed(seed)
    if isinstance(architecture, str):
        model = open_clip.create_model(architecture, pretrained=None)
    else:
        model = open_clip.model.CLIP(**architecture)
    return ClipViT(model.to(device), preprocess=None, tokenizer=None, name=f"random-{seed}")


def random_pair(name: str, device: str = "cpu") -> tuple[ClipViT, ClipViT]:
    source, target = PAIRS[name]
    return random_model(source, 1, device), random_model(target, 2, device)


def random_head(model: ClipViT, classes: int = 10) -> Tensor:
    features = model.sites[-1].shape[0]
    return F.normalize(torch.randn(classes, features, generator=torch.Generator().manual_seed(0)), dim=1).to(
        model.device
    )


def random_pictures(model: ClipViT, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, *model.model.visual.image_size, generator=generator).to(model.device)


class Solved(Gathered):
    """Evidence whose maps are solved already."""

    def __init__(self, samples: int, maps: Mapping[SignalKey, AlignmentMap]) -> None:
        super().__init__(samples)
        self.maps = maps

    def map(self, key: SignalKey, rule: MapRule) -> AlignmentMap:
        return self.maps[key]


class Clock:
    """Times work: by the wall, or by the CPU seconds of this process with one thread, on machines that others use too."""

    def __init__(self, kind: str = "wall", device: str = "cpu") -> None:
        self.kind, self.device = kind, device
        if kind == "cpu":
            torch.set_num_threads(1)  # SciPy's library reads OMP_NUM_THREADS when it is loaded

    def __str__(self) -> str:
        return "CPU seconds of one thread" if self.kind == "cpu" else "seconds"

    @classmethod
    def add_option(cls, parser: argparse.ArgumentParser) -> None:
        about = "wall: elapsed seconds; cpu: CPU seconds of one thread, for a machine that is shared"
        parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help=about)

    def timed(self, work: Callable[[], T]) -> tuple[float, T]:
        """Seconds that `work` takes, and what it returns."""
        started = self._now()
        result = work()
        return self._now() - started, result

    def median(self, work: Callable[[], Any], repeats: int = 3) -> float:
        return statistics.median(self.timed(work)[0] for _ in range(repeats))

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.kind == "cpu" else time.perf_counter()


def gemm_rate(clock: Clock, dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Operations per second of square matrix products on this machine, now, by the faster of its libraries."""
    a, b = (torch.randn(size, size, dtype=dtype, device=clock.device) for _ in range(2))
    product(a, b)
    return 2 * size**3 / clock.median(lambda: product(a, b), 5)


class PeakMemory:
    """Peak resident memory of this process since it was made, in bytes; where Linux forbids a reset, since its start."""

    def __init__(self) -> None:
        try:
            CLEAR.write_text("5")
            self.since = "since"
        except OSError:
            self.since = ""

    def read(self) -> int:
        if self.since:
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            return 1024 * int(line.split()[1])
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine(device: str = "cpu") -> str:
    """One line about hardware, versions, and what else the machine was doing."""
    gpu = f"; {torch.cuda.get_device_name()}" if device == "cuda" else ""
    about = provenance.machine(("torch", "scipy", "numpy", "open_clip_torch", "zarr"))
    return f"{about}; {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}{gpu}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table: the first column to the left, the others to the right."""
    return "\n".join([head(header), *map(line, rows)])


def head(header: Sequence[str]) -> str:
    return f"{line(header)}\n| --- |" + " ---: |" * (len(header) - 1)


def line(cells: Sequence[object]) -> str:
    """One line of a table, for what is to be printed as it comes."""
    return "| " + " | ".join(map(str, cells)) + " |"
