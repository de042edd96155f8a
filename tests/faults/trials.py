"""One fault at a time: inject it, look at what is there, run again, compare with the undisturbed run."""

import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import Process
from pathlib import Path
from tempfile import TemporaryDirectory

from bico.errors import StoreError
from storage import gc
from storage.artefacts import ArtefactStore
from storage.manifest import MANIFEST
from tests.faults import work
from tests.faults.residue import stale
from tests.places import Place

PATIENCE = 120
"""Seconds after which a process counts as hanging: a lock that outlived its holder, a race that nobody wins."""


How = Callable[[bytes, random.Random], bytes | None]
"""From a file's content to what a fault makes of it; None if it deletes the file."""


@dataclass(frozen=True)
class Outcome:
    """What a fault came to. Every wrong list must be empty."""

    fault: str
    taken_for_finished: list[str]
    """Artefacts that a reader took for complete while their content was not that of the undisturbed run."""
    wrong: list[str]
    """Artefacts of the second run that differ from the undisturbed run, or an error of it."""
    left: list[str]
    """Stale state: unsound artefacts, or a run that hung."""
    struck: bool
    """Whether the fault did anything: a process died, a run failed, a file was changed."""

    @property
    def good(self) -> bool:
        return not (self.taken_for_finished or self.wrong or self.left)

    def certain(self) -> "Outcome":
        """The same, but a fault that did nothing is a failure of the harness."""
        return self if self.struck else replace(self, wrong=[*self.wrong, "the fault did not happen"])


@cache
def undisturbed() -> dict[str, str]:
    """The digests of a run to which nothing happened."""
    with TemporaryDirectory() as folder:
        return work.pipeline(ArtefactStore(folder))


class Trial:
    """A place with the processes of one fault."""

    def __init__(self, place: Place, folder: Path, seed: int) -> None:
        self.place, self.folder, self.random = place, folder, random.Random(seed)
        self.struck = False

    def start(self, *, own_staging: bool = False, **options: object) -> tuple[Process, Path]:
        answer = self.folder / f"answer-{uuid.uuid4().hex}"
        staging = self.place.staging
        if own_staging and staging is not None:
            staging = self.folder / f"machine-{uuid.uuid4().hex}"
        return work.start(self.place.url, staging, answer, **options), answer

    def run(self, **options: object) -> dict:
        """Runs the pipeline and returns its answer; of a process that died, that it did."""
        process, answer = self.start(**options)
        return self.wait(process, answer)

    def wait(self, process: Process, answer: Path) -> dict:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
            return {"hung": True}
        result = json.loads(answer.read_text()) if answer.exists() else {"died": process.exitcode}
        self.struck |= "digests" not in result
        return result

    def finish(self, fault: str) -> Outcome:
        """Looks, runs again, and compares."""
        expected = undisturbed()
        reader = self.place.open()
        early = [key for key in work.artefacts() if reader.is_complete(key) and _differs(reader, key, expected)]
        again = self.run()
        digests = again.get("digests", {})
        wrong = [key for key in work.artefacts() if digests.get(key) != expected[key]]
        if "error" in again:
            wrong.append(again["error"])
        left = ["the second run hung"] if "hung" in again else []
        del reader  # what it has leased is not the fault's
        left += stale(self.place, self.folder.glob("machine-*"))
        return Outcome(fault, early, wrong, left, self.struck)


def _differs(reader: ArtefactStore, key: str, expected: dict[str, str]) -> bool:
    try:
        return work.digest(reader, key) != expected[key]
    except (StoreError, OSError):  # it was taken for complete and cannot even be read
        return True


# The faults


def at_a_fault_point(fault: work.Fault) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        trial.run(fault=fault)

    return inject


def at_a_fault_point_while_replacing(fault: work.Fault) -> Callable[[Trial], None]:
    """The fault hits a run that finds a damaged artefact and makes it again."""

    def inject(trial: Trial) -> None:
        trial.run()
        trial.place.write(work.artefacts()[0], work.FILES[0], b"damaged")
        trial.run(fault=fault)

    return inject


def at_a_random_moment(trial: Trial) -> None:
    process, answer = trial.start(pause=0.01)
    process.join(trial.random.uniform(0.0, 0.4))
    process.kill()
    trial.wait(process, answer)


def damage(how: How, manifest: bool = False) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        trial.run()
        key = trial.random.choice(work.artefacts())
        name = MANIFEST if manifest else trial.random.choice(work.FILES)
        trial.struck = damage_file(trial.place, key, name, how, trial.random)

    return inject


def damage_file(place: Place, key: str, name: str, how: How, chance: random.Random) -> bool:
    """Changes a file of an artefact behind the store's back, and tells whether that changed anything."""
    before = place.read(key, name)
    after = how(before, chance)
    if after is None:
        place.delete(key, name)
    else:
        place.write(key, name, after)
    return after != before


def truncated(content: bytes, random: random.Random) -> bytes:
    return content[: random.randrange(len(content))]


def flipped(content: bytes, random: random.Random) -> bytes:
    at = random.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << random.randrange(8))]) + content[at + 1 :]


def zeroed(content: bytes, random: random.Random) -> bytes:
    return bytes(len(content))


def deleted(content: bytes, random: random.Random) -> None:
    return None


def concurrently(writers: int, killed: int = 0, machines: bool = False) -> Callable[[Trial], None]:
    """Several runs of one pipeline at once, some of which die; on machines of their own they share no lock."""

    def inject(trial: Trial) -> None:
        # Whoever replaces what another has just committed takes its time; with locks nobody does.
        slow = work.Fault(work.FaultPoint.REMOVED, 0, "dawdle")
        started = [trial.start(pause=0.02, own_staging=machines, fault=slow) for _ in range(writers)]
        for process, _ in started[:killed]:
            process.join(trial.random.uniform(0.0, 0.3))
            process.kill()
        answers = [trial.wait(process, answer) for process, answer in started]
        for answer in answers[killed:]:
            if answer.get("digests") != undisturbed():
                raise AssertionError(f"one of {writers} concurrent runs ended with {answer}")
        trial.struck = True

    return inject


def with_skew(seconds: float) -> Callable[[Trial], None]:
    """One process's clock is off, dies, and `gc` by another clock runs before the second run."""

    def inject(trial: Trial) -> None:
        user = trial.place.open()
        fault = work.Fault(work.FaultPoint.COMMITTED, 2, "kill")
        trial.run(fault=fault, skew=seconds)
        first = work.artefacts()[0]
        there = user.is_complete(first)
        gc.collect(trial.place.open(), older_than=0)
        if there and not user.is_complete(first):
            raise AssertionError("gc deleted what a living process had leased")

    return inject


def beside_a_clock(seconds: float) -> Callable[[Trial], None]:
    """A process whose clock is off works, and so sweeps, while another builds."""

    def inject(trial: Trial) -> None:
        slow, answer = trial.start(pause=0.1)
        deadline = time.monotonic() + PATIENCE
        while slow.is_alive() and not _building(trial) and time.monotonic() < deadline:
            time.sleep(0.005)
        answers = [trial.wait(*trial.start(skew=seconds)), trial.wait(slow, answer)]
        for result in answers:
            if result.get("digests") != undisturbed():
                raise AssertionError(f"beside a clock that is off, a run ended with {result}")
        trial.struck = True

    return inject


def _building(trial: Trial) -> bool:
    tmp = trial.place.bench / "tmp"
    return tmp.exists() and any(tmp.iterdir())


def on_a_small_disk(size: int) -> Callable[[Trial], None]:
    """A real disk on which not everything has room; the kernel says when it is full."""

    def inject(trial: Trial) -> None:
        trial.run(disk=size)

    return inject


def with_gc(trial: Trial) -> None:
    """A collector that deletes whatever is not in use, again and again, while two runs work."""
    started = [trial.start(pause=0.005) for _ in range(2)]
    collector = trial.place.open()
    deadline = time.monotonic() + PATIENCE
    while any(process.is_alive() for process, _ in started) and time.monotonic() < deadline:
        gc.collect(collector, older_than=0)
    for process, answer in started:
        result = trial.wait(process, answer)
        if result.get("digests") != undisturbed():
            raise AssertionError(f"beside gc, a run ended with {result}")
    trial.struck = True
