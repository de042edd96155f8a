"""The kinds of places for artefacts, with the same handles on all: one set of tests holds them to one contract."""

import json
import logging
import os
import urllib.request
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore, ObjectStore, S3Store

from storage import bucket
from storage.artefacts import ArtefactStore
from storage.manifest import MANIFEST

BUCKET = "experts"
KEY = "maps-0123456789abcdef"
FILES = ("deep/data", "empty")
"""What `Builder` writes."""
SOURCES = os.pathsep.join(path for path in (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")) if path)
"""PYTHONPATH for processes that import what this one does."""


class Builder:
    """Writes two files and counts how often it was asked to."""

    def __init__(self, content: bytes = b"bytes") -> None:
        self.calls = 0
        self.content = content

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "deep" / "data").write_bytes(self.content)
        (folder / "empty").write_bytes(b"")


@contextmanager
def serving_s3() -> Iterator[None]:
    """A loopback S3 server and an empty bucket, announced in the environment as a user would."""
    from moto.server import ThreadedMotoServer  # takes seconds to load: here, for those who ask for a bucket

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line per request
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_ACCESS_KEY_ID", "testing")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
            yield
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    with serving_s3():
        yield


class Place(ABC):
    """An address for a store, and a way around the store to its bytes."""

    def __init__(self, url: str, staging: Path | None) -> None:
        self.url, self.staging = url, staging

    def open(self, **options: Any) -> ArtefactStore:
        return ArtefactStore(self.url, staging=self.staging, **options)

    @property
    def bench(self) -> Path:
        """Where artefacts are built."""
        return self.staging or Path(self.url)

    def leftovers(self) -> list[Path]:
        return list((self.bench / "tmp").iterdir())

    def manifest(self, key: str) -> dict:
        return json.loads(self.read(key, MANIFEST))

    def change_manifest(self, key: str, change: Callable[[dict], object]) -> None:
        content = self.manifest(key)
        change(content)
        self.write(key, MANIFEST, json.dumps(content).encode())

    @abstractmethod
    def read(self, key: str, name: str) -> bytes: ...

    @abstractmethod
    def write(self, key: str, name: str, content: bytes) -> None: ...

    @abstractmethod
    def delete(self, key: str, name: str) -> None: ...

    @abstractmethod
    def is_empty(self, key: str) -> bool:
        """Whether nothing of the key is where readers look."""


class FolderPlace(Place):
    def read(self, key: str, name: str) -> bytes:
        return self._file(key, name).read_bytes()

    def write(self, key: str, name: str, content: bytes) -> None:
        self._file(key, name).write_bytes(content)

    def delete(self, key: str, name: str) -> None:
        self._file(key, name).unlink()

    def is_empty(self, key: str) -> bool:
        return not self._file(key, "").exists()

    def _file(self, key: str, name: str) -> Path:
        return Path(self.url) / "final" / key / name


class BucketPlace(Place):
    def __init__(self, url: str, staging: Path, client: ObjectStore) -> None:
        super().__init__(url, staging)
        self.client = client

    def read(self, key: str, name: str) -> bytes:
        return bytes(obstore.get(self.client, self._object(key, name)).bytes())

    def write(self, key: str, name: str, content: bytes) -> None:
        obstore.put(self.client, self._object(key, name), content)

    def delete(self, key: str, name: str) -> None:
        obstore.delete(self.client, self._object(key, name))

    def is_empty(self, key: str) -> bool:
        return not self.objects(f"data/{key}/") and not [o for o in self.objects("manifests/") if f"/{key}.json" in o]

    def objects(self, prefix: str) -> list[str]:
        return [item["path"] for batch in obstore.list(self.client, prefix) for item in batch]

    def _object(self, key: str, name: str) -> str:
        if name == MANIFEST:
            return f"manifests/{key}.json"
        return f"data/{key}/{self.manifest(key)['attempt']}/{name}"


@pytest.fixture(params=["folder", "bucket", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place of its own for one test, of each kind; the bucket in memory is one of no provider, seen by this process."""
    if request.param == "folder":
        return FolderPlace(str(tmp_path / "store"), None)
    if request.param == "memory":
        return new_memory_place(tmp_path, monkeypatch)
    request.getfixturevalue("s3")
    return new_bucket_place(tmp_path, monkeypatch)


@pytest.fixture
def store(place: Place) -> ArtefactStore:
    return place.open()


def new_bucket_place(folder: Path, patch: pytest.MonkeyPatch) -> BucketPlace:
    """A prefix of its own in the bucket that `s3` serves."""
    patch.setenv("BICO_CACHE", str(folder / "cache"))  # for stores that open an address by themselves
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    return BucketPlace(url, folder / "staging", S3Store.from_url(url, client_options={"allow_http": True}))


def new_memory_place(folder: Path, patch: pytest.MonkeyPatch) -> BucketPlace:
    """A bucket in the memory of this process, under the address of a provider that nobody can reach from here."""
    url, client = f"gs://memory/{uuid.uuid4().hex}", MemoryStore()
    patch.setenv("BICO_CACHE", str(folder / "cache"))

    def connect(asked: str) -> MemoryStore:
        assert asked == url
        return client

    patch.setattr(bucket, "connect", connect)
    return BucketPlace(url, folder / "staging", client)
