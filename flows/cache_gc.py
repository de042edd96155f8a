"""Keep the artefact store small, on a schedule."""

from prefect import flow

from flows.commands.cache_cli import parse_age
from flows.settings import Settings
from tasks.gc import collect_garbage


@flow(name="cache-gc")
def cache_gc(
    older_than: str = "30d", keep_reachable: bool = True, dry_run: bool = False, settings: Settings | None = None
) -> dict[str, int]:
    """Deletes artefacts that are old and, unless told otherwise, that no run has noted as used.

    Arguments:
        older_than: Only what was made longer ago: 36h, 30d, 4w.
        keep_reachable: Keep what some run has used, however old.
        dry_run: Only tell what would go.
        settings: Where the store is; from the worker's environment if None.
    """
    settings = settings or Settings.from_environment()
    return collect_garbage(settings.store, parse_age(older_than), keep_reachable, dry_run)
