"""A new release of the base model comes out: carry all experts over, compare, and ask before publishing."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field, field_validator

from bico.errors import BicoError, at_home
from bico.models.releases import Release
from bico.reporting.compare import Comparison, compare, comparison_table
from bico.reporting.merged import MergedRow, merged_table
from bico.reporting.rows import Row
from bico.reporting.tables import markdown_table
from bico.task_vector.merging import DENSITY, Merging
from flows.commands.links import flow_run_page, mlflow_page
from flows.config import TransferConfig, make_config
from flows.merge import MODEL, merge_flow, plan_merge
from flows.planning.costs import Estimate
from flows.planning.estimate import forecast
from flows.planning.plan import Plan, make_plan
from flows.planning.ready import Ready, handed
from flows.records.repeat import MODELS
from flows.settings import Settings
from flows.transfer import transfer
from tasks.record import register
from tasks.releases import RECORD, Record, find_release, question, records, show_release

PUBLISHED = "published"
"""The alias that published versions carry in MLflow."""
MERGED = "merged"
"""The folder of the model that all experts were put together in, and what it is registered as; no expert's name."""
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
    merge: Literal["none", "sum", "ties"] = "sum"
    """How the carried experts, where there are several, are put together into one model of the release: by task arithmetic or
    TIES, at strengths that their calibration samples ask for (`bico merge`)."""
    out: Path = Path("out/releases")
    """A folder per release: results, models, and the record of what was decided."""
    days: Annotated[float, Field(gt=0)] = 7.0
    """How long a person has to decide; the run fails after that, and the next one asks again."""

    @field_validator("experts")
    @classmethod
    def _no_merged(cls, experts: dict[str, Any]) -> dict[str, Any]:
        if MERGED in experts:
            raise ValueError(f"{MERGED!r} names what all experts are put together in; call this one otherwise")
        return experts

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
        record = put_together(config, settings, release, carry_over(config, settings, release, record))
    if record.watcher != me:
        record = replace(record, watcher=me)
        record.write(folder)
    verdict, table = judge(config, record)
    runs = {**record.runs, **({MERGED: record.merged_run} if record.merged_run else {})}
    show_release(record, table, verdict, {f"{name} in MLflow": mlflow_page(run) for name, run in runs.items()})
    decision = ask(config, verdict, release.name)
    versions: dict[str, str] = {}
    if decision.publish:
        for name, run in runs.items():
            places = [folder / MERGED / MODEL] if name == MERGED else sorted((folder / name / MODELS).glob("*"))
            models = {model.name: str(model) for model in places}
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
        # Planned anew: what one has left, the next one finds.
        ready = Ready(one, settings, *_planned(one, settings))
        with handed(ready):
            result = transfer(one, settings)
        # Two experts may be for one task: their rows must not be taken for each other's.
        rows += [replace(row, task=f"{name}: {row.task}") if several[row.task] > 1 else row for row in result.rows]
        runs[name] = result.outputs["mlflow"]
    return replace(record, rows=tuple(rows), runs=runs)


def _planned(config: TransferConfig, settings: Settings) -> tuple[Plan, Estimate]:
    plan = make_plan(config, settings)
    return plan, forecast(plan, settings)[1]


def put_together(config: WatchConfig, settings: Settings, release: Release, record: Record) -> Record:
    """Merges what was carried over into one model of the release, measured on the task of each; says why, where that cannot be."""
    folder, transfers = config.out / release.name, config.transfers(release)
    places = [folder / name for name, one in transfers.items() if one.export != "none"]
    carried = sum(len(one.carried) for one in transfers.values())
    if config.merge == "none" or carried < 2:
        return record
    limits = [one.test_limit for one in transfers.values() if one.test_limit is not None]
    try:
        plan_merge(places, folder / MERGED, None, settings)
        merged = merge_flow(
            places, folder / MERGED, Merging(config.merge), DENSITY, None, settings, min(limits, default=None)
        )
    except BicoError as error:  # a release is judged without it, too
        note = f"Not put together into one model: {error}"
        get_run_logger().warning(note)
        return replace(record, notes=(*record.notes, note))
    rows = tuple(MergedRow(**row) for row in merged["rows"])
    return replace(record, merged=rows, merged_run=merged["outputs"]["mlflow"])


def judge(config: WatchConfig, record: Record) -> tuple[str, str]:
    """The verdict in one line, and the tables behind it: against the last release that was published."""
    last = next((old for old in reversed(records(config.out)) if old.published and old.digest != record.digest), None)
    results = "\n\n".join(["## Results", markdown_table(record.rows), *_together(record), *record.notes])
    if last is None:
        return "First release: there is none to compare with.", results
    shared = {row.cell for row in last.rows} & {row.cell for row in record.rows}
    if not shared:
        return f"Nothing to compare with {last.release}: it was carried over on other tasks or samples.", results
    found: Comparison = compare(last.rows, record.rows)
    heading = f"## {last.release} (first) against {record.release} (second)"
    return found.sentence, f"{heading}\n\n{comparison_table(found)}\n\n{results}"


def _together(record: Record) -> list[str]:
    if not record.merged:
        return []
    return ["## All experts in one model", merged_table(record.merged)]


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
