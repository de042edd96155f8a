"""Results of earlier runs, from MLflow or from a folder."""

import re
from pathlib import Path

from bico.errors import ConfigError
from bico.reporting.compare import read_rows
from bico.reporting.rows import Row
from flows.config import Settings
from storage.runs import read_run
from tasks.record import open_tracker

TABLE = "results.csv"


def rows_of(run: str, settings: Settings) -> list[Row]:
    """Returns the rows of a run.

    Arguments:
        run: A folder in which a transfer left its table, a table, or the id of its run in MLflow.

    Raises:
        ConfigError: If it is none of them, or the table is damaged.
        StoreError: If MLflow does not know the run.
    """
    path = Path(run).expanduser()
    if path.is_dir():
        path /= TABLE
    if path.is_file():
        return read_rows(path.read_text(encoding="utf-8").splitlines(), str(path))
    if not re.fullmatch(r"[0-9a-f]{32}", run):
        raise ConfigError(f"{run}: give a folder with {TABLE}, a table, or the id (32 digits) of a run in MLflow.")
    if settings.mlflow_uri is None and not (settings.home / "mlflow.db").exists():
        raise ConfigError(f"No MLflow database at {settings.home}: give --home or MLFLOW_TRACKING_URI.")
    return [Row.parse(row) for row in read_run(open_tracker(settings), run).rows]
