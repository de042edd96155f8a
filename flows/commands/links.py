"""Where a run can be looked at."""

import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bico.reporting.choice import Choice

UI = "http://127.0.0.1:4200"
MLFLOW_UI = "http://127.0.0.1:5000"


def flow_run_page(flow_run: str) -> str:
    """A flow run's page in Prefect."""
    return f"{os.environ.get('PREFECT_API_URL', UI).removesuffix('/api')}/runs/flow-run/{flow_run}"


def mlflow_page(run: Mapping[str, Any]) -> str:
    """A run's page in MLflow, as `record_run` describes the run."""
    address = run["uri"] if run["uri"].startswith("http") else MLFLOW_UI
    return f"{address}/#/experiments/{run['experiment']}/runs/{run['run']}?workflowType=machine_learning"


def prefect_is_configured() -> bool:
    """Whether Prefect has an API to talk to, which one process at least serves for longer than a run.

    Prefect's library, which takes a second to import, is asked only if something names an address.
    """
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    files = [Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml"), *map(Path, CONFIGURED_IN)]
    if not any(
        mark in text for file in files for text in [_text(file)] for mark in ("PREFECT_API_URL", "[api]", "api.url")
    ):
        return False
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


CONFIGURED_IN = (".env", "prefect.toml", "pyproject.toml")
"""Beside profiles, where Prefect looks for settings in the working directory."""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def answers(address: str) -> bool:
    """Whether a server says there that it is well; one that is not there costs no time, on this machine."""
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def what_was_written(outputs: Mapping[str, Any]) -> str:
    """The files and versions of a transfer."""
    lines = [f"Page:    {outputs['page']}", f"Table:   {outputs['table']}"]
    chosen = {Choice.parse(found).cell.folder: found for found in outputs.get("chosen", {}).values()}
    adapters = outputs.get("adapters", {})
    for name, folder in outputs["models"].items():
        found = chosen.get(name)
        lines.append(
            f"{'Adapter' if name in adapters else 'Model'}:{' ' * (1 if name in adapters else 3)}{folder}"
            + (f"   test {found['test']:.1f} %" if found else "")
        )
        if found:
            lines.append(f"         {Choice.parse(found).sentence}")
        lines += [f"         {line}" for line in adapters.get(name, ())]
    return "\n".join(lines + [f"Version: {name} {n}" for name, n in outputs.get("registered", {}).items()])


def where_to_look(outputs: Mapping[str, Any]) -> str:
    """Where a run can be looked at: a link if somebody answers there, and else what to start."""
    flow_run, run = outputs["prefect"]["flow_run"], outputs["mlflow"]
    page, recorded = flow_run_page(flow_run), mlflow_page(run)
    lines = [""]
    if answers(f"{page.partition('/runs/')[0]}/api/health"):
        lines.append(f"See the run in Prefect:  {page}")
    else:
        lines.append(f"See the run in Prefect:  start `prefect server start`; it is run {flow_run}")
    if answers(f"{recorded.partition('/#/')[0]}/health"):
        lines.append(f"See the run in MLflow:   {recorded}")
    else:
        lines.append(
            f"See the run in MLflow:   start `mlflow ui --backend-store-uri {run['uri']}`; it is run {run['run']}"
        )
    return "\n".join(lines)
