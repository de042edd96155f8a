"""Results of earlier runs, from MLflow or from a folder."""

import re
from pathlib import Path

from bico.errors import ConfigError, at_home, one_line
from bico.reporting.compare import read_rows
from bico.reporting.page.record import RunRecord
from bico.reporting.rows import Row
from flows.records.repeat import RECORD
from flows.settings import Settings
from storage.runs import read_record, read_run
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
    _check_id(run, f"a folder with {TABLE}, a table", settings)
    return [Row.parse(row) for row in read_run(open_tracker(settings), run).rows]


def record_of_run(run: str, settings: Settings) -> RunRecord:
    """Returns the record of a run.

    Arguments:
        run: A folder in which a transfer left its record, or the id of its run in MLflow.

    Raises:
        ConfigError: If it is neither, or the record is damaged.
        StoreError: If MLflow does not know the run, or it left no record.
    """
    path = at_home(Path(run))
    if path.is_dir():
        if not (path / RECORD).is_file():
            raise ConfigError(f"{path} has no {RECORD}: give the folder that a transfer wrote (--out).")
        path /= RECORD
    if path.is_file():
        try:
            return RunRecord.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({one_line(error)}): run the transfer again.") from error
    _check_id(run, f"a folder with {RECORD}", settings)
    return RunRecord.parse(read_record(open_tracker(settings), run, RECORD), f"run {run}")


def _check_id(run: str, else_: str, settings: Settings) -> None:
    if not re.fullmatch(r"[0-9a-f]{32}", run):
        raise ConfigError(f"{run}: give {else_}, or the id (32 digits) of a run in MLflow.")
    if settings.mlflow_uri is None and not (settings.home / "mlflow.db").exists():
        raise ConfigError(f"No MLflow database at {settings.home}: give --home or MLFLOW_TRACKING_URI.")
