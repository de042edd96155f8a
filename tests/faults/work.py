"""A small pipeline on a store, and the processes that run it and may die doing so."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bico.errors import StoreError
from storage.artefacts import ArtefactStore
from storage.fault_points import FaultPoint, intercepted
from storage.keys import artefact_key
from tests.faults import disks, mutations

STEPS = 3
"""The variant: each step reads the one before. Its first step leaves two artefacts of one pass."""
FILES = ("chunks/c0", "chunks/c1", "index.json")

PROCESSES: Any = multiprocessing.get_context("forkserver")
"""Makes processes; the long session puts another maker here."""
PROCESSES.set_forkserver_preload(["tests.faults.work", "storage.bucket"])


@dataclass(frozen=True)
class Fault:
    """What happens when a fault point is reached for the nth time."""

    point: FaultPoint
    nth: int
    action: str
    """kill, full (no space left), read-only, or lost (no connection); "files stop growing", which the kernel sees to; or
    dawdle: wait there each time, so that others see what is between two steps."""


DAWDLE = 0.3
"""Seconds."""
FILE_BYTES = 1000
"""What a file may grow to when files cannot grow any more: a manifest is written, and a chunk is cut short."""

ERRORS = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "lost": OSError(errno.ECONNRESET, "Connection reset by peer"),
}


def artefacts() -> list[str]:
    """The keys of the pipeline's artefacts, in order; the second is the other half of the first step."""
    variant = [artefact_key("step", 1, number=number) for number in range(STEPS)]
    return [variant[0], artefact_key("twin", 1), *variant[1:]]


def content(key: str, name: str, before: bytes) -> bytes:
    """What a file of an artefact holds: a function of its key and of what came before, like everything in a store."""
    seed = hashlib.sha256(f"{key} {name}".encode() + before).digest()
    return json.dumps({"of": seed.hex()}).encode() if name.endswith(".json") else seed * 300


def pipeline(store: ArtefactStore, pause: float = 0.0) -> dict[str, str]:
    """Runs the pipeline; returns a digest per artefact."""

    def write(folder: Path, key: str, before: bytes) -> None:
        (folder / "chunks").mkdir()
        for name in FILES:
            (folder / name).write_bytes(content(key, name, before))
            time.sleep(pause)

    first, twin, *rest = artefacts()
    store.get_or_create_many([first, twin], lambda folders: [write(f, key, b"") for key, f in folders.items()] and None)
    previous = first
    for key in rest:
        before = b"".join((store.folder(previous) / name).read_bytes() for name in FILES)
        store.get_or_create(key, lambda folder, key=key, before=before: write(folder, key, before))
        previous = key
    return {key: digest(store, key) for key in artefacts()}


def digest(store: ArtefactStore, key: str) -> str:
    folder = store.folder(key)
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES)).hexdigest()


class Injector:
    """Counts how often a fault point is reached, and strikes at one of those times."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._reached = fault, Counter()

    def __call__(self, point: FaultPoint, key: str) -> None:
        self._reached[point] += 1
        if point is self._fault.point and self._fault.action == "dawdle":
            time.sleep(DAWDLE)
        elif point is self._fault.point and self._reached[point] == self._fault.nth:
            self.strike(self._fault.action)

    def strike(self, action: str) -> None:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "files stop growing":
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))
        else:
            raise ERRORS[action]


def skewed(seconds: float) -> None:
    """From now on this process's clock is ahead."""
    now = time.time
    time.time = lambda: now() + seconds


def start(
    url: str,
    staging: Path | None,
    answer: Path,
    *,
    fault: Fault | None = None,
    pause: float = 0.0,
    skew: float = 0.0,
    disk: int | None = None,
) -> multiprocessing.Process:
    """Runs the pipeline in a process of its own.

    Arguments:
        answer: Where the digests are written, or the store's error.
        pause: Seconds that each file takes to write.
        skew: Seconds by which the process's clock is ahead.
        disk: The size of the disk on which the process builds, bytes.
    """
    told = url, staging, answer, fault, pause, skew, disk, dict(os.environ)
    process = PROCESSES.Process(target=_main, args=told)
    process.start()
    return process


def _main(
    url: str,
    staging: Path | None,
    answer: Path,
    fault: Fault | None,
    pause: float,
    skew: float,
    disk: int | None,
    environment: dict,
) -> None:
    os.environ.clear()
    os.environ.update(environment)  # the fork server's is of the time when it started
    mutations.apply()
    if skew:
        skewed(skew)
    with ExitStack() as held:
        if disk:
            bench = staging or Path(url)
            bench.mkdir(parents=True, exist_ok=True)
            disks.alone()
            held.enter_context(disks.small(bench, disk))
        if fault:
            held.enter_context(intercepted(Injector(fault)))
        try:
            result = {"digests": pipeline(ArtefactStore(url, staging=staging), pause)}
        except (StoreError, OSError) as error:
            result = {"error": f"{type(error).__name__}: {error}"}
    answer.write_text(json.dumps(result))
