"""Runs in MLflow: one parent per flow run, one child per (task, method, N, seed).

Every call names its run. MLflow's module-level functions keep a current run per thread and, called from a task, open
runs of their own; so they are not used here.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bico.errors import ConnectionLostError, StoreError, masked

# Read by MLflow while it is imported: nothing is sent home, and no line per database table.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines per run, where `--json` prints
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # a server that is not there: seconds, not minutes

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _initialize_tables
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAM_CHARS = 500

_TABLES = "mlflow.loggedArtifacts"  # the tag by which the UI knows which files are tables
_SECRET_NAME = re.compile(r"(^|[_.-])(token|password|passwd|secret|credentials?|api_?key|access_?key)$", re.IGNORECASE)


class Tracker:
    """Writes to one experiment.

    Make it once, before the work fans out: the first one on a new database creates the tables. It then belongs to the
    flow's process; tasks return their numbers.

    Arguments:
        uri: `sqlite:///…`, `http(s)://…`, or None for a SQLite file under `home`.
        experiment: Created if it is not there.
        home: The folder for the database and, unless a server keeps them, the artefacts.

    Raises:
        StoreError: If the database or server cannot be used.
    """

    def __init__(self, uri: str | None, experiment: str, home: Path) -> None:
        # Absolute, since MLflow stores the location and reads it from other working directories.
        home = Path(home).expanduser().absolute()
        self.uri = uri or f"sqlite:///{home / 'mlflow.db'}"
        self.experiment = experiment
        self._children: dict[str, dict[str, str]] = {}
        with self._talking():
            if file := _sqlite_file(self.uri):
                _ready(file)
            self._client = MlflowClient(tracking_uri=self.uri)
            self.experiment_id = self._experiment_id(home)

    def start_parent(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        once: str | None = None,
    ) -> str:
        """Opens the run of a whole flow and returns its id; `finish` closes it.

        Arguments:
            once: A tag of which each value has one run: a retry goes on with the run that it began.
        """
        if once and tags:
            with self._talking():
                where = f"tags.`{once}` = '{tags[once]}'"
                found = self._client.search_runs([self.experiment_id], where, max_results=1)
                if found:
                    self._client.update_run(found[0].info.run_id, "RUNNING")
                    return found[0].info.run_id
        return self._start(name, params or {}, {}, tags or {})

    def log_child(
        self,
        parent: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        """Writes one finished result under a parent and returns its run id.

        A name is written once per parent: logging it again (a retried task) returns the first run.

        Arguments:
            parent: From `start_parent`.
            name: Unique under the parent, e.g. "digits/bico/N=100/seed=0".
            params: What was asked for; cut to 500 characters each, secrets masked.
            metrics: What came out.
            tags: Whatever else runs should be found by.
        """
        children = self._children_of(parent)
        if name not in children:
            run = self._start(name, params or {}, metrics or {}, {**(tags or {}), "mlflow.parentRunId": parent})
            self.finish(run)
            children[name] = run
        return children[name]

    def log_metrics(self, run: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Adds metrics to a run; the UI draws a metric's values at several steps as a curve."""
        with self._talking():
            self._client.log_batch(run, metrics=_metrics(metrics, step))

    def describe(self, run: str, markdown: str) -> None:
        """Gives a run the description that heads its page."""
        with self._talking():
            self._client.set_tag(run, "mlflow.note.content", markdown)

    def log_artifact(self, run: str, file: Path, folder: str | None = None) -> None:
        """Copies a file, or all of a directory, to a run."""
        with self._talking():
            if Path(file).is_dir():
                self._client.log_artifacts(run, str(file), folder)
            else:
                self._client.log_artifact(run, str(file), folder)

    def log_figure(self, run: str, figure: "Figure", file: str) -> None:
        """Draws a figure into a run's file, e.g. "accuracy.png"."""
        with self._talking():
            self._client.log_figure(run, figure, file)

    def log_table(self, run: str, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        """Writes rows to a run as a table that the UI shows; `file` ends in .json. Replaces an earlier one.

        Arguments:
            rows: Mappings of column to JSON value; a column that a row lacks is left empty.
        """
        columns = list(dict.fromkeys(column for row in rows for column in row))
        data = [[row.get(column) for column in columns] for row in rows]
        with self._talking():
            # MLflow's own `log_table` appends, so that a retry would double the rows.
            self._client.log_dict(run, {"columns": columns, "data": data}, file)
            tables = json.loads(self._client.get_run(run).data.tags.get(_TABLES, "[]"))
            if (entry := {"path": file, "type": "table"}) not in tables:
                self._client.set_tag(run, _TABLES, json.dumps([*tables, entry]))

    def finish(self, run: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Closes a run."""
        with self._talking():
            self._client.set_terminated(run, status)

    def _start(
        self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, Any]
    ) -> str:
        with self._talking():
            tags = {key: _short(key, value) for key, value in tags.items()}
            run = self._client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
            entries = [Param(key, _short(key, value)) for key, value in params.items()]
            # MLflow takes a hundred parameters at a time.
            for start in range(0, max(1, len(entries)), 100):
                self._client.log_batch(run, _metrics(metrics) if start == 0 else (), entries[start : start + 100])
        return run

    def _children_of(self, parent: str) -> dict[str, str]:
        """Returns run ids by name; asks MLflow once, since a search takes as long as writing a run."""
        if parent not in self._children:
            found: dict[str, str] = {}
            page = None
            with self._talking():
                while page is None or page.token:
                    page = self._client.search_runs(
                        [self.experiment_id],
                        f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'FINISHED'",
                        page_token=page.token if page else None,
                    )
                    found |= {run.info.run_name: run.info.run_id for run in page}
            self._children[parent] = found
        return self._children[parent]

    def _experiment_id(self, home: Path) -> str:
        known = self._client.get_experiment_by_name(self.experiment)
        if known:
            return known.experiment_id
        # A server decides for itself where artefacts go; without one it would be the working directory.
        location = None if self.uri.startswith("http") else (home / "mlflow-artifacts").as_uri()
        try:
            return self._client.create_experiment(self.experiment, artifact_location=location)
        except MlflowException:
            # Somebody else may have created it since we looked.
            if known := self._client.get_experiment_by_name(self.experiment):
                return known.experiment_id
            raise

    @contextmanager
    def talking(self) -> Iterator[MlflowClient]:
        """MLflow's own client, for the time of a question; what goes wrong becomes a StoreError."""
        with self._talking():
            yield self._client

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            lost = self.uri.startswith("http") and "API request to" in reason and "failed with" in reason
            raise (ConnectionLostError if lost else StoreError)(
                f"MLflow at {self.uri} refused ({reason}): check the address and that it can be written."
            ) from error


def _sqlite_file(uri: str) -> Path | None:
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(file) if uri.startswith("sqlite:///") and file not in ("", ":memory:") else None


def _ready(file: Path) -> None:
    """Sees that a database is there: one process creates it while the others wait.

    MLflow by itself creates its tables in place, over fifty migrations. Two processes at it break each other, and one
    that is killed leaves a database that nobody can open; so the file gets its name when it is finished.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file closes, or its process dies
        if not file.exists():
            unfinished = Path(f"{file}.new")
            unfinished.unlink(missing_ok=True)
            engine = create_engine(f"sqlite:///{unfinished}")
            # One flush at the end, in place of hundreds: seconds on a busy disk.
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
            _initialize_tables(engine)
            with engine.connect() as connection:
                # The file remembers this. A third of the time per run, and readers (the UI) hold up no writer.
                connection.execute(text("PRAGMA journal_mode = WAL"))
            engine.dispose()
            with open(unfinished, "rb") as written:
                os.fsync(written.fileno())
            unfinished.rename(file)
    # MLflow tries for minutes to open what is a folder, or not ours to write.
    with open(file, "r+b"):
        pass


def _metrics(metrics: Mapping[str, float], step: int = 0) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(key, float(value), now, step) for key, value in metrics.items()]


def _short(key: str, value: object) -> str:
    """Returns a value as MLflow may show it: no secrets, and long ones cut but still distinct."""
    if _SECRET_NAME.search(key):
        return "***"
    text = masked(str(value))
    if len(text) <= PARAM_CHARS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{text[: PARAM_CHARS - 23]}… (sha256 {digest})"
