"""When a task is tried again: a connection was lost. Everything else would fail the same way a second time."""

from typing import Any

from prefect.client.schemas import State

from bico.errors import ConnectionLostError


def connection_lost(task: Any, run: Any, state: State) -> bool:
    """Prefect's question after a failure."""
    return isinstance(state.result(raise_on_failure=False), ConnectionLostError)


RETRIES: dict[str, Any] = {"retries": 3, "retry_delay_seconds": [2, 10, 30], "retry_condition_fn": connection_lost}
"""Options of tasks that talk to the store or to MLflow. Both are written so that a second attempt does no harm."""
