"""Maps are solved on Dask, one task per block."""

import time
from typing import Any, Self, cast

from distributed import CancelledError, LocalCluster
from distributed import TimeoutError as DaskTimeoutError
from distributed.comm import CommClosedError
from prefect import flow, get_run_logger, unmapped
from prefect.task_runners import TaskRunner
from prefect_dask import DaskTaskRunner
from prefect_dask.task_runners import PrefectDaskFuture

from bico.errors import ClusterError, one_line
from flows.settings import Settings
from tasks.cached_stage import Done, Workspace
from tasks.maps import BlockMaps
from tasks.procrustes import solve_maps
from tasks.progress import counted, reported

LOOK_EVERY = 20.0
"""Seconds between looks at the cluster while a result is waited for."""
NO_WORKER = 180.0
"""Seconds without any worker after which nobody is expected to come; one that died is replaced in a few."""


TRIES = 3
"""How often a cluster that was lost is asked again: what was solved by then is in the store."""


class Cluster:
    """The Dask cluster that the settings name: a local one is started when there is work for the first time, and serves until
    the context ends.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local: LocalCluster | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def solve(self, space: Workspace, blocks: list[BlockMaps]) -> list[Done]:
        """Solves maps.

        Raises:
            ClusterError: If the cluster is lost again and again, has no workers, or takes too long.
        """
        for attempt in range(1, TRIES + 1):
            try:
                runner = cast("TaskRunner[Any]", DaskTaskRunner(address=self._address()))  # untyped in prefect-dask
                return fan_out.with_options(task_runner=runner)(space, blocks, self._settings.stage_timeout)
            except (CancelledError, CommClosedError) as error:
                get_run_logger().warning("Lost the Dask cluster (try %d of %d): %s", attempt, TRIES, error)
                lost = one_line(error, 200)
                self._close()
        raise ClusterError(
            f"The connection to the Dask cluster was lost {TRIES} times ({lost}): look at its scheduler."
        )

    def _address(self) -> str:
        if self._settings.dask_scheduler:
            return self._settings.dask_scheduler
        if self._local is None:
            # One thread per worker: linear algebra of two workers on two cores must not ask for four.
            self._local = LocalCluster(n_workers=self._settings.workers, threads_per_worker=1, dashboard_address=":0")
        return self._local.scheduler_address

    def _close(self) -> None:
        if self._local is not None:
            self._local.close()
            self._local = None


@flow(name="solve-maps", flow_run_name="solve-maps", validate_parameters=False)
def fan_out(space: Workspace, blocks: list[BlockMaps], limit: float | None = None) -> list[Done]:
    """Solves maps.

    Arguments:
        limit: Seconds that one block may keep the flow waiting.

    Raises:
        ClusterError: If there are no workers, or a block takes too long: Dask itself would wait for ever.
    """
    # Nobody calls this flow but with a Dask runner.
    futures = cast("list[PrefectDaskFuture[Done]]", solve_maps.map(unmapped(space), blocks))
    with reported("solve-maps", "blocks", len(blocks)) as advance:
        # Every result is asked for: a task that kills its worker would otherwise pass unnoticed.
        return [
            _result(future, block.group, limit) for future, block in zip(counted(futures, advance), blocks, strict=True)
        ]


def _result(future: "PrefectDaskFuture[Done]", block: str, limit: float | None) -> Done:
    started, alone = time.monotonic(), 0.0
    while True:
        try:
            return future.result(timeout=LOOK_EVERY)
        except TimeoutError:
            if future.wrapped_future.done():  # by now; what the task itself raised, this raises again
                return future.result()
        client = future.wrapped_future.client
        if limit is not None and time.monotonic() - started > limit:
            raise ClusterError(
                f"The maps of {block} kept the run waiting for more than {limit:g} s: look at the Dask scheduler at "
                f"{client.scheduler.address}, or raise BICO_STAGE_TIMEOUT."
            )
        alone = 0.0 if _workers(client) else alone + LOOK_EVERY
        if alone >= NO_WORKER:
            raise ClusterError(
                f"The Dask scheduler at {client.scheduler.address} has had no worker for {alone:.0f} s: start some, "
                "and look into the log of the last one for why it ended."
            )


def _workers(client: Any) -> int:
    try:
        return len(client.scheduler_info(n_workers=-1)["workers"])
    except (OSError, DaskTimeoutError):  # the scheduler is gone or busy: the future will tell
        return 1
