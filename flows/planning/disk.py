"""What a run takes on the disk."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bico.errors import StoreError
from flows.records.result import Result
from flows.settings import Settings


def disk_use(settings: Settings, result: Result) -> dict[str, int]:
    """Bytes of the artefacts that a run used, of what it wrote, and of the copies that MLflow keeps, where that is here."""
    found = {"store": store_bytes(settings, str(result.outputs["prefect"]["flow_run"])), "results": 0, "mlflow": 0}
    with suppress(OSError):
        found["results"] = size_of(Path(result.outputs["table"]).parent)
        found["mlflow"] = size_of(mlflow_folder(settings, result.outputs["mlflow"]))
    return found


def store_bytes(settings: Settings, run: str, since: float = 0.0) -> int:
    """Bytes of the artefacts that a finished flow run has used; 0 where the store cannot tell.

    Arguments:
        since: In seconds since 1970; what was made before does not count.
    """
    from storage.artefacts import open_store
    from storage.gc import runs
    from storage.manifest import FaultError

    total = 0
    with suppress(StoreError, OSError):
        store = open_store(settings.store)
        for key in runs(store).get(run, {"keys": []})["keys"]:
            with suppress(FaultError):
                about = store.backend.look(key)
                total += about.size if about.created >= since else 0
    return total


def mlflow_folder(settings: Settings, run: Mapping[str, str]) -> Path:
    """Where MLflow keeps a run's files, if no server does (`storage.tracking`)."""
    return settings.home.absolute() / "mlflow-artifacts" / run["run"]


def folder_of_uri(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def size_of(place: Path) -> int:
    """Bytes of a file, or of all files below a folder; 0 if it is not there."""
    if place.is_file():
        return place.stat().st_size
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) if place.is_dir() else 0


def bytes_told(size: float) -> str:
    """Example:
    >>> bytes_told(999), bytes_told(12_300_000), bytes_told(0)
    ('999 B', '12.3 MB', '0 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def told(disk: Mapping[str, int]) -> str:
    """The sizes of a run, in a line."""
    return (
        f"{bytes_told(disk['store'])} in the store, {bytes_told(disk['results'])} of results, "
        f"{bytes_told(disk['mlflow'])} in MLflow (`bico cache gc` frees what nobody needs)"
    )
