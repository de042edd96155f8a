"""Tables again every night, compared with the last night's."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas import State
from prefect.states import Completed, Failed

from bico.reporting.compare import Comparison, compare, comparison_table, read_rows
from flows.recipes import list_recipes, read_recipe
from flows.reproduce import check, reproduce
from flows.settings import Settings
from tasks.reports import show_page


@flow(name="reproduce-nightly", flow_run_name="reproduce {recipes}")
def reproduce_nightly(
    recipes: list[str],
    mini: bool = True,
    data: list[Path] | None = None,
    out: Path = Path("out/nightly"),
    fresh: bool = False,
    settings: Settings | None = None,
) -> State[dict[str, Any]]:
    """Makes tables and figures of the paper and tells what has changed since the last night.

    A table of which any cell has changed ends the run as Failed: somebody should know why.

    Arguments:
        recipes: As of `bico reproduce --list`; `all` for all of them.
        data: Folders of tasks, as for `bico reproduce --data`.
        out: Each night has a folder in it.
        fresh: With a store of its own for the night, in `home`, so that everything is computed again.
        settings: Addresses; from the worker's environment if None.
    """
    settings, data = settings or Settings.from_environment(), data or []
    chosen = [read_recipe(name) for name in (list_recipes() if recipes == ["all"] else recipes)]
    store = settings.home.expanduser().absolute() / "nightly" / str(runtime.flow_run.id)
    if fresh:
        settings = settings.model_copy(update={"store": str(store)})
    for recipe in chosen:
        check(recipe, mini, data, settings)
    tonight = out / _night()
    changes: dict[str, Comparison | None] = {}
    try:
        for recipe in chosen:
            reproduce(recipe, mini, data, settings, tonight, f"deployment reproduce-nightly, {recipe.id}")
            changes[recipe.label(mini)] = _since_last(tonight, recipe.label(mini))
    finally:
        if fresh:
            shutil.rmtree(store, ignore_errors=True)
    moved = [label for label, found in changes.items() if found is not None and found.moved]
    show_page("nightly", report(changes), f"{len(moved)} of {len(changes)} tables have changed")
    if moved:
        return Failed(message=f"Changed since the last night: {', '.join(moved)}.")
    summary = {label: None if found is None else found.to_json() for label, found in changes.items()}
    return Completed(message="Nothing has changed.", data=summary)


def report(changes: dict[str, Comparison | None]) -> str:
    """What has changed, in Markdown."""
    parts = ["# Since the last night"]
    for label, found in changes.items():
        if found is None:
            parts.append(f"## {label}\n\nNothing earlier to compare with.")
        elif not found.moved:
            parts.append(f"## {label}\n\nAll {found.cells} cells are as they were.")
        else:
            parts.append(f"## {label}\n\n{found.moved} of {found.cells} cells have moved.\n\n{comparison_table(found)}")
    return "\n\n".join(parts)


def _since_last(tonight: Path, label: str) -> Comparison | None:
    """Compares a table with the one of the latest night before that has one; a figure has none."""
    now = tonight / f"{label}.csv"
    earlier = [path for path in sorted(tonight.parent.glob(f"*/{label}.csv")) if path.parent.name < tonight.name]
    if not now.exists() or not earlier:
        return None
    before, after = (read_rows(path.read_text(encoding="utf-8").splitlines(), str(path)) for path in (earlier[-1], now))
    return compare(before, after)


def _night() -> str:
    return (runtime.flow_run.scheduled_start_time or datetime.now(UTC)).strftime("%Y-%m-%d-%H%M%S")
