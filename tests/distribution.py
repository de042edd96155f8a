"""Which tests of several processes run in the same one: those that share a server, a cluster, or something slow to make.

Groups are of whole files. (pytest-xdist's own groups are marks that it hangs onto the ids of tests, which pytest 9.2 does not
let it do, and it says nothing.)
"""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pytest

SERVICES = {"api", "scheduler"}
"""Fixtures that start Prefect's server or a Dask cluster."""
SHARES = {
    "test_flow": 1,
    "test_cli": 1,
    "test_recorded": 1,
    "test_flow_beyond": 2,
    "test_flow_text": 2,
    "test_families": 2,
}
"""Modules of flows in the first and the second of three processes, with about as much to do; all others are in the third."""
ALONE = {
    "test_claims",
    "test_compare",
    "test_errors",
    "test_golden",
    "test_guards_store",
    "test_offline",
    "test_options",
    "test_real_page",
    "test_server",
    "test_your_own_data",
}
"""Modules of `tests/pipeline` that start no service, or one of their own."""
ELSEWHERE = {"test_pretrain_text"}
"""Modules of other folders that want a service."""
DRAWN = {"test_data_tasks", "test_pictures", "test_zoo", "test_quality"}
"""Modules that look at the generated pictures: drawing them takes seconds, once in a process."""
FIRST = ("flows-1", "flows-2", "flows-3", "test_offline", "drawn", "test_server", "test_notebooks", "storage")
"""The longest groups, to begin with, so that none is left when the others are through."""


def group(place: str) -> str:
    """Returns what a test file is run together with.

    Arguments:
        place: The file, from the project's root.

    Example:
        >>> group("tests/pipeline/test_recipes.py"), group("tests/library/test_ridge.py")
        ('flows-3', 'tests/library/test_ridge.py')
    """
    path = PurePosixPath(place)
    if path.stem in ELSEWHERE or (path.parent.name == "pipeline" and path.stem not in ALONE):
        return f"flows-{SHARES.get(path.stem, 3)}"
    if path.parent.name == "storage":
        return "storage"  # a bucket
    if path.stem in DRAWN:
        return "drawn"
    return path.stem if path.stem in FIRST else place


def rank(place: str) -> int:
    """Returns where a file's group stands in the queue."""
    found = group(place)
    return FIRST.index(found) if found in FIRST else len(FIRST)


def check_shared(place: str, fixtures: Iterable[str]) -> None:
    """Raises UsageError if a test wants a service that would be started for its file alone."""
    wanted = SERVICES & set(fixtures)
    if wanted and not group(place).startswith("flows"):
        raise pytest.UsageError(
            f"{place} wants {', '.join(sorted(wanted))}: name the file in tests/distribution.py, so that it is shared."
        )


def scheduling(config: pytest.Config, log: Any) -> Any:
    """Hands whole groups to processes, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.split("::")[0])

    return Groups(config, log)
