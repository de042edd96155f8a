"""Free space in the artefact store, and show what went."""

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from storage import gc
from storage.artefacts import open_store
from tasks.retries import RETRIES


@task(name="collect-garbage", task_run_name="collect-garbage", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def collect_garbage(store: str, older_than: float, keep_reachable: bool, dry_run: bool) -> dict[str, int]:
    """Deletes what all conditions choose and nobody uses; leaves a summary and a table by stage.

    Arguments:
        older_than: Seconds since it was made.
        keep_reachable: Only what no run's note names.
        dry_run: Only tell.
    """
    done = gc.collect(open_store(store), older_than=older_than, keep_reachable=keep_reachable, dry_run=dry_run)
    stages: dict[str, list[int]] = {}
    for artefact in done.deleted:
        count = stages.setdefault(artefact.stage, [0, 0])
        count[0] += 1
        count[1] += artefact.size
    verb = "would go" if dry_run else "went"
    text = f"{len(done.deleted)} artefacts {verb} ({done.size / 1e6:.1f} MB), {len(done.in_use)} stay: they are in use."
    get_run_logger().info(text)
    create_markdown_artifact(f"# Artefact store\n\n{text}\n", key="cache-gc", description=text)
    if stages:
        rows = [{"stage": stage, "artefacts": n, "MB": f"{size / 1e6:.2f}"} for stage, (n, size) in stages.items()]
        create_table_artifact(rows, key="cache-gc-stages", description=f"What {verb}, by stage")
    return {"deleted": len(done.deleted), "in_use": len(done.in_use), "bytes": done.size}
