"""Where a run can be looked at."""

import os
from collections.abc import Mapping
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


def what_was_written(outputs: Mapping[str, Any]) -> str:
    """The files and versions of a transfer."""
    lines = [f"Page:    {outputs['page']}", f"Table:   {outputs['table']}"]
    chosen = {Choice.parse(found).cell.folder: found for found in outputs.get("chosen", {}).values()}
    for name, folder in outputs["models"].items():
        found = chosen.get(name)
        lines.append(f"Model:   {folder}" + (f"   test {found['test']:.1f} %" if found else ""))
        if found:
            lines.append(f"         {Choice.parse(found).sentence}")
    return "\n".join(lines + [f"Version: {name} {n}" for name, n in outputs.get("registered", {}).items()])


def where_to_look(outputs: Mapping[str, Any]) -> str:
    """What to start and open, for somebody whose transfer has just ended."""
    run, own = outputs["mlflow"], "PREFECT_API_URL" not in os.environ
    lines = ["", "See the run in Prefect:  prefect server start   (unless one runs already)"] if own else [""]
    lead = " " * 25 if own else "See the run in Prefect:  "
    lines.append(lead + flow_run_page(outputs["prefect"]["flow_run"]))
    if run["uri"].startswith("http"):
        lines.append(f"See the run in MLflow:   {mlflow_page(run)}")
    else:
        lines += [
            f"See the run in MLflow:   mlflow ui --backend-store-uri {run['uri']}",
            f"{' ' * 25}{mlflow_page(run)}",
        ]
    return "\n".join(lines)
