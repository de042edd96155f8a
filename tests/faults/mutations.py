"""Stores that are wrong on purpose: what the harness has to notice, or it could not have noticed a mistake of ours.

Each mutation takes one safeguard out of the store, in every process that a fault's trial starts.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import pytest

from storage import artefacts, bucket, folder, leases
from storage.artefacts import ArtefactStore
from storage.bucket import BucketBackend
from storage.fault_points import FaultPoint, reach
from storage.folder import FolderBackend
from storage.manifest import MANIFEST, Manifest, seal

VARIABLE = "BICO_TEST_MUTATION"

Mutation = Callable[[pytest.MonkeyPatch], None]


def built_in_place(patch: pytest.MonkeyPatch) -> None:
    """Artefacts are built where readers look for them, in place of in a folder that is renamed when it is finished."""

    def build(self: ArtefactStore, keys: list[str], build: Callable, meta: dict) -> None:
        folders = {key: self.backend.place(key) for key in keys}
        for path in folders.values():
            path.mkdir()
        self._reach(FaultPoint.PREPARED, keys)
        build(dict(folders))
        self._reach(FaultPoint.BUILT, keys)
        for key, path in folders.items():
            seal(key, path, meta)
        self._reach(FaultPoint.SEALED, keys)
        for key in keys:
            reach(FaultPoint.COMMITTED, key)

    patch.setattr(ArtefactStore, "_build", build)


def no_manifest_needed(patch: pytest.MonkeyPatch) -> None:
    """Built in place, and a folder counts as finished by being there."""
    built_in_place(patch)
    honest = FolderBackend.look

    def look(self: FolderBackend, key: str) -> Manifest:
        place = self.place(key)
        if place.is_dir() and not (place / MANIFEST).exists():
            return Manifest(key, {})
        return honest(self, key)

    patch.setattr(FolderBackend, "look", look)


def digests_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Readers compare names and sizes only."""
    patch.setattr(artefacts, "read_through", lambda folder, manifest: None)


def sizes_not_compared(patch: pytest.MonkeyPatch) -> None:
    """Readers ask only whether there is a manifest."""
    digests_not_compared(patch)
    patch.setattr(artefacts, "look", lambda folder, manifest: ())
    patch.setattr(folder, "look", lambda folder, manifest: ())


def tags_not_compared(patch: pytest.MonkeyPatch) -> None:
    """A bucket's listing is not compared with the tags in the manifest, though it vouches for the content."""
    patch.setattr(bucket, "_same_tag", lambda listed, given: True)


def no_locks(patch: pytest.MonkeyPatch) -> None:
    """Nobody waits for anybody."""

    @contextmanager
    def free(path: Path, **_: object) -> Iterator[bool]:
        path.touch()
        yield True

    patch.setattr(artefacts, "locked", free)


def locks_that_outlive_their_holder(patch: pytest.MonkeyPatch) -> None:
    """A lock is a file that is there, as many tools have it; nobody removes it for the dead."""

    @contextmanager
    def held(path: Path, **_: object) -> Iterator[bool]:
        taken = path.with_name(f"{path.name}.taken")
        while True:
            try:
                os.close(os.open(taken, os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                time.sleep(0.01)
        try:
            yield True
        finally:
            taken.unlink()

    patch.setattr(artefacts, "locked", held)


def leases_ignored(patch: pytest.MonkeyPatch) -> None:
    """`gc` does not ask what living processes use."""
    patch.setattr(leases.Leases, "_read", lambda self: set())
    patch.setattr(BucketBackend, "leased", lambda self: set())


def published_first(patch: pytest.MonkeyPatch) -> None:
    """In a bucket, the manifest is put before the files, and believed without a look at them."""
    honest = BucketBackend._upload

    def upload(self: BucketBackend, key: str, built: Path, manifest: Manifest, attempt: str) -> Manifest:
        early = manifest.with_tags(dict.fromkeys(manifest.files, ""), attempt)
        obstore.put(self._store, bucket._manifest_name(key), early.to_bytes())
        return honest(self, key, built, manifest, attempt)

    def look(self: BucketBackend, key: str) -> Manifest:
        return self._manifest(key)

    patch.setattr(BucketBackend, "_upload", upload)
    patch.setattr(BucketBackend, "look", look)


def builders_not_spared(patch: pytest.MonkeyPatch) -> None:
    """What is old in `tmp` is swept whether or not its builder lives."""

    @contextmanager
    def free(path: Path, **_: object) -> Iterator[bool]:
        yield True

    patch.setattr(folder, "locked", free)


def leftovers_not_swept(patch: pytest.MonkeyPatch) -> None:
    """Nobody clears away what the dead have left."""
    patch.setattr(FolderBackend, "sweep", lambda self: None)
    patch.setattr(BucketBackend, "sweep", lambda self: None)
    patch.setattr(BucketBackend, "sweep_lost", lambda self: None)


def damaged_files_sealed(patch: pytest.MonkeyPatch) -> None:
    """A build that failed is sealed and committed as it is."""
    honest = ArtefactStore._build

    def build(self: ArtefactStore, keys: list[str], build: Callable, meta: dict) -> None:
        def careless(folders: dict[str, Path]) -> None:
            try:
                build(folders)
            except OSError:
                for path in folders.values():
                    (path / "index.json").touch()

        honest(self, keys, careless, meta)

    patch.setattr(ArtefactStore, "_build", build)


MUTATIONS: dict[str, Mutation] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        built_in_place,
        no_manifest_needed,
        digests_not_compared,
        sizes_not_compared,
        tags_not_compared,
        no_locks,
        locks_that_outlive_their_holder,
        leases_ignored,
        published_first,
        builders_not_spared,
        leftovers_not_swept,
        damaged_files_sealed,
    )
}


EXPOSED_BY: dict[str, tuple[str, list[str]]] = {
    "built in place": ("folder", ["killed at built 1"]),
    "no manifest needed": ("folder", ["killed at prepared 2"]),
    "digests not compared": ("folder", ["file flipped", "file zeroed"]),
    "sizes not compared": ("folder", ["file truncated"]),
    "tags not compared": ("bucket", ["file flipped"]),
    "no locks": ("folder", ["3 writers"]),
    "locks that outlive their holder": ("folder", ["killed at prepared 2"]),
    "leases ignored": ("folder", ["beside gc"]),
    "published first": ("bucket", ["killed at uploaded 4"]),
    "builders not spared": ("folder", ["clock +400 days beside a builder"]),
    "leftovers not swept": ("folder", ["killed at built 1"]),
    "damaged files sealed": ("folder", ["files stop growing at prepared 3"]),
}
"""Per mutation, the kind of place and the faults that must notice it."""


def apply() -> None:
    """Mutates this process for good, if the environment asks for it."""
    if name := os.environ.get(VARIABLE):
        MUTATIONS[name](pytest.MonkeyPatch())


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Mutates this process, and those that trials start, for the time of the context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, name)
        MUTATIONS[name](patch)
        yield
