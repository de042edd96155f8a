"""What Prefect's UI shows of a run: artifacts of its results, its blocks and its plot."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from bico.reporting.advice import advice
from bico.reporting.block_report import BlockReport, worst
from bico.reporting.names import label_of, short_name
from bico.reporting.page.record import RunRecord
from bico.reporting.page.verdict import verdict
from bico.reporting.rows import Row
from bico.reporting.tables import headlines, markdown_table, spread_note
from tasks.page import PAGE


@task(name="show-results", task_run_name="show-results", cache_policy=NO_CACHE, persist_result=False)
def show_results(
    source: str,
    target: str,
    rows: Sequence[Row],
    blocks: Sequence[BlockReport],
    stages: Mapping[str, Mapping[str, int]],
    plot: Path,
    models: Mapping[str, str],
    record: RunRecord,
) -> None:
    """Leaves a page in Markdown, the cells as a table, the blocks as a table, and the plot.

    Arguments:
        stages: Computed and cached, by stage.
        models: Folders that were written, by name.
        record: Of the run, whose page lies beside its table.
    """
    pair = f"{short_name(source)} → {short_name(target)}"
    text = page(pair, rows, blocks, stages, models, verdict(record), plot.parent / PAGE)
    create_markdown_artifact(text, key="results", description=f"Results of {pair}")
    cells = [row.record() | {"method": label_of(row.method), "accuracy": f"{row.accuracy:.2f}"} for row in rows]
    create_table_artifact(cells, key="cells", description=f"Accuracy (%) of every cell, {pair}")
    if blocks:
        create_table_artifact([block.to_row() for block in blocks], key="blocks", description=worst(blocks))
    picture = base64.b64encode(plot.read_bytes()).decode()
    create_image_artifact(f"data:image/png;base64,{picture}", key="accuracy", description=f"Accuracy, {pair}")


def page(
    pair: str,
    rows: Sequence[Row],
    blocks: Sequence[BlockReport],
    stages: Mapping[str, Mapping[str, int]],
    models: Mapping[str, str],
    said: str = "",
    file: Path | None = None,
) -> str:
    """A run on one page: what came out, what was done for it, and where the models are.

    Arguments:
        said: The verdict.
        file: Where the page with plots lies.
    """
    parts = [
        f"# {pair}",
        *([f"**{said}**"] if said else []),
        f"Accuracy in %{spread_note(rows)}.",
        markdown_table(rows),
    ]
    parts += [f"The page of this run, with plots: `{file}`"] if file else []
    if lines := headlines(rows):
        parts.append("\n".join(lines))
    parts += advice(rows)
    if blocks:
        parts += ["## Blocks", f"{worst(blocks)} The artifact `blocks` has them all."]
    parts += ["## Stages", "| stage | computed | cached |\n| --- | ---: | ---: |"]
    parts[-1] += "".join(f"\n| {name} | {c['computed']} | {c['cached']} |" for name, c in stages.items())
    if models:
        parts += ["## Models", "\n".join(f"- {name}: `{folder}`" for name, folder in models.items())]
    return "\n\n".join(parts)
