"""A new release of the base model comes out: carry all experts over, compare, and ask before publishing."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field, field_validator

from bico.errors import at_home
from bico.models.releases import Release
from bico.reporting.compare import Comparison, compare, comparison_table
from bico.reporting.rows import Row
from bico.reporting.tables import markdown_table
from flows.commands.links import flow_run_page, mlflow_page
from flows.config import TransferConfig, make_config
from flows.planning.plan import make_plan
from flows.records.repeat import MODELS
from flows.settings import Settings
from flows.transfer import transfer
from tasks.record import register
from tasks.releases import RECORD, Record, find_release, question, records, show_release

PUBLISHED = "published"
"""The alias that published versions carry in MLflow."""
POLL = 5
"""Seconds between looks for an answer, where the run waits in its process."""


class WatchConfig(BaseModel):
    """What is watched, and what is done with a new release."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    releases: str
    """A folder whose sub-folders are releases of the target, or hf:ORG/NAME for a hub's newest revision."""
    experts: Annotated[dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], dict[str, Any]], Field(min_length=1)]
    """The registered experts: by name, the keys of a transfer without `target` and `out`."""
    register_as: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "bico"
    """Published models are registered in MLflow under this name and the expert's."""
    out: Path = Path("out/releases")
    """A folder per release: results, models, and the record of what was decided."""
    days: Annotated[float, Field(gt=0)] = 7.0
    """How long a person has to decide; the run fails after that, and the next one asks again."""

    @field_validator("out")
    @classmethod
    def _at_home(cls, out: Path) -> Path:
        return at_home(out)

    def transfers(self, release: Release) -> dict[str, TransferConfig]:
        """The transfers to a release, by expert."""
        return {
            name: make_config(
                expert | {"target": str(release.folder), "out": self.out / release.name / name}, f"expert {name}"
            )
            for name, expert in self.experts.items()
        }


class Decision(RunInput):
    """What a person says about a release."""

    publish: bool
    comment: str = ""


@flow(name="release-watch", flow_run_name="watch {config.releases}")
def release_watch(config: WatchConfig, settings: Settings | None = None) -> State[dict[str, Any]]:
    """Looks for a release that nobody has decided on, and takes the oldest through to a decision.

    A deployed run leaves its process while it waits and comes back when somebody has answered; what was computed by
    then is in the record, and in the store.
    """
    settings, log = settings or Settings.from_environment(), get_run_logger()
    found = find_release(config.releases, config.out)
    if found is None:
        return Completed(name="NothingNew", message=f"No new release at {config.releases}.")
    release, digest = found
    folder, me = config.out / release.name, str(runtime.flow_run.id)
    record = Record.read(folder / RECORD) if (folder / RECORD).exists() else None
    if record is None or record.digest != digest:
        record = Record(release.name, str(release.folder), digest)
    if record.rows and record.watcher != me and _is_waiting(record.watcher):
        return Completed(name="Waiting", message=f"{release.name} waits for an answer: {flow_run_page(record.watcher)}")
    if not record.rows:
        record = carry_over(config, settings, release, record)
    if record.watcher != me:
        record = replace(record, watcher=me)
        record.write(folder)
    verdict, table = judge(config, record)
    show_release(record, table, verdict, {f"{name} in MLflow": mlflow_page(run) for name, run in record.runs.items()})
    decision = ask(config, verdict, release.name)
    versions: dict[str, str] = {}
    if decision.publish:
        for name, run in record.runs.items():
            models = {model.name: str(model) for model in sorted((folder / name / MODELS).glob("*"))}
            versions |= register(settings, run["run"], f"{config.register_as}-{name}", PUBLISHED, models)
    replace(record, published=decision.publish, comment=decision.comment, versions=versions).write(folder)
    log.info("%s: %s", release.name, "published" if decision.publish else "not published")
    name = "Published" if decision.publish else "Declined"
    return Completed(name=name, message=verdict, data={"release": release.name, "versions": versions})


def carry_over(config: WatchConfig, settings: Settings, release: Release, record: Record) -> Record:
    """Transfers all experts, each as a sub-flow; all are planned before the first is begun."""
    transfers = config.transfers(release)
    for one in transfers.values():
        make_plan(one, settings)
    rows: list[Row] = []
    runs: dict[str, dict[str, str]] = {}
    several = Counter(task for one in transfers.values() for task in one.tasks)
    for name, one in transfers.items():
        result = transfer(one, settings)
        # Two experts may be for one task: their rows must not be taken for each other's.
        rows += [replace(row, task=f"{name}: {row.task}") if several[row.task] > 1 else row for row in result.rows]
        runs[name] = result.outputs["mlflow"]
    return replace(record, rows=tuple(rows), runs=runs)


def judge(config: WatchConfig, record: Record) -> tuple[str, str]:
    """The verdict in one line, and the tables behind it: against the last release that was published."""
    last = next((old for old in reversed(records(config.out)) if old.published and old.digest != record.digest), None)
    results = f"## Results\n\n{markdown_table(record.rows)}"
    if last is None:
        return "First release: there is none to compare with.", results
    shared = {row.cell for row in last.rows} & {row.cell for row in record.rows}
    if not shared:
        return f"Nothing to compare with {last.release}: it was carried over on other tasks or samples.", results
    found: Comparison = compare(last.rows, record.rows)
    heading = f"## {last.release} (first) against {record.release} (second)"
    return found.sentence, f"{heading}\n\n{comparison_table(found)}\n\n{results}"


def ask(config: WatchConfig, verdict: str, release: str) -> Decision:
    """Waits for a person. A deployed run ends its process meanwhile; any other would be lost if it did."""
    form = Decision.with_initial_data(**question(verdict, release))
    seconds, key = int(config.days * 86400), f"decision-{release}"
    if runtime.deployment.id is not None:
        return suspend_flow_run(wait_for_input=form, timeout=seconds, key=key)
    return pause_flow_run(wait_for_input=form, timeout=seconds, key=key, poll_interval=POLL)


def _is_waiting(flow_run: str) -> bool:
    """Whether a flow run is there and has not ended."""
    if not flow_run:
        return False
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(flow_run)).state
        except ObjectNotFound:
            return False
    return state is not None and not state.is_final()
