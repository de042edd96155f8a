"""Garbage collection: what a store holds, what is wrong with it, and what may go.

A run leaves a note that lists the artefacts it used; so "what no run needs" can be told. Nothing that a living process
has leased is ever deleted (`storage.leases`; in a bucket, `storage.bucket`).
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bico.errors import StoreError, nearest
from storage.artefacts import ArtefactStore
from storage.fault_points import FaultPoint, reach
from storage.manifest import FaultError

YOUNG_SECONDS = 24 * 3600
"""Artefacts younger than this stay unless an age is given: the run that made them may not have left its note yet."""


@dataclass(frozen=True)
class StoredArtefact:
    """One artefact, as a listing shows it."""

    key: str
    stage: str
    size: int
    """Bytes; 0 if its manifest cannot be read."""
    created: float
    """Seconds since 1970; 0 if its manifest cannot be read."""
    in_use: bool
    """Whether a living process has leased it."""
    runs: tuple[str, ...]
    """The runs whose notes name it."""


@dataclass(frozen=True)
class Collection:
    """What a collection did, or would do."""

    deleted: list[StoredArtefact]
    in_use: list[StoredArtefact]
    """Would have gone, were they not leased."""

    @property
    def size(self) -> int:
        return sum(artefact.size for artefact in self.deleted)


def note_run(store: ArtefactStore, run: str, keys: Iterable[str], about: dict[str, object] | None = None) -> None:
    """Leaves the note of a run: the artefacts it used. A second note of a run replaces the first."""
    note = {"run": run, "created": time.time(), "about": about or {}, "keys": sorted(keys)}
    store.backend.write_note(f"run-{run}", json.dumps(note).encode())


def runs(store: ArtefactStore) -> dict[str, dict]:
    """The notes of runs, by run."""
    found = {}
    for name, read in store.backend.notes().items():
        try:
            note = json.loads(read())
            found[str(note["run"])] = {**note, "keys": [str(key) for key in note["keys"]]}
        except FileNotFoundError:
            continue  # deleted meanwhile
        except (ValueError, KeyError, TypeError) as error:
            # Guessing that it names nothing could delete what its run needs.
            raise StoreError(
                f"Note {name} of {store.url} is damaged ({error}): delete it if its run is over."
            ) from error
    return found


def inventory(store: ArtefactStore) -> Iterator[StoredArtefact]:
    """Everything in the store, sound or not, by key; reads manifests only."""
    users: dict[str, list[str]] = {}
    for run, note in runs(store).items():
        for key in note["keys"]:
            users.setdefault(key, []).append(run)
    leased = store.backend.leased()
    for key in store.backend.listed():
        stage = key.rpartition("-")[0] or key
        try:
            manifest = store.backend.look(key)
            size, created = manifest.size, manifest.created
        except FaultError:
            size, created = 0, 0.0
        yield StoredArtefact(key, stage, size, created, key in leased, tuple(users.get(key, ())))


def verify(store: ArtefactStore, repair: bool = False) -> tuple[int, dict[str, str]]:
    """Reads all artefacts through.

    Arguments:
        repair: Remove the damaged ones, so that the next run makes them again.

    Returns:
        How many there are, and what is wrong with the damaged ones, by key.
    """
    faults, keys = {}, list(store.backend.listed())
    for key in keys:
        fault = store.fault(key, again=True)
        if fault is not None:
            faults[key] = fault
            if repair:
                store.discard(key)
    return len(keys), faults


def collect(
    store: ArtefactStore,
    *,
    older_than: float | None = None,
    run: str | None = None,
    keep_reachable: bool = False,
    dry_run: bool = False,
) -> Collection:
    """Deletes the artefacts that all of the given conditions choose, except those in use.

    Arguments:
        older_than: Seconds since they were made; a day if None.
        run: Only what this run used and no other run did; its note goes too.
        keep_reachable: Only what no run's note names.
        dry_run: Delete nothing, only tell.

    Raises:
        StoreError: If no condition is given, the run has left no note, or the store cannot be written.
    """
    if older_than is None and run is None and not keep_reachable:
        raise StoreError("Nothing says what may go: give an age, a run, or keep-reachable.")
    if run is not None and run not in (known := runs(store)):
        raise StoreError(f"Run {run!r} has left no note in {store.url}; {nearest(run, known)}")
    # A run that is named is over, and what it alone used may go however young.
    age = older_than if older_than is not None else (0.0 if run is not None else YOUNG_SECONDS)
    now = time.time()
    chosen = [
        artefact
        for artefact in inventory(store)
        if now - artefact.created >= age
        and (run is None or artefact.runs == (run,))
        and not (keep_reachable and artefact.runs)
    ]
    if dry_run:
        return Collection([h for h in chosen if not h.in_use], [h for h in chosen if h.in_use])
    deleted: list[StoredArtefact] = []
    in_use: list[StoredArtefact] = []
    for artefact in chosen:
        reach(FaultPoint.CHOSEN, artefact.key)
        (deleted if store.backend.remove(artefact.key, unless_leased=True) else in_use).append(artefact)
    if run is not None and not in_use:
        store.backend.delete_note(f"run-{run}")
    store.backend.sweep_lost()
    store.backend.sweep_locks()
    return Collection(deleted, in_use)
