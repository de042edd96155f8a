"""What the stages share that measure a model, bare, fine-tuned or with a transferred task vector, on a task's test split."""

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager

from bico.models.loading import ModelFiles
from storage.keys import Ref
from tasks.inputs import open_model, open_update
from tasks.progress import reported


def measured_on(
    model: ModelFiles, identity: dict[str, object], weights: Ref | None, alpha: float, limit: int | None
) -> dict[str, object]:
    """What enters the key of any measure.

    Arguments:
        identity: Of the task, as far as the measure depends on it.
        weights: A fine-tuned state, a task vector, or nothing for the model as it is.
        alpha: How much of the task vector is added.
        limit: Only the first so many test samples.
    """
    return {"model": model.digest(), "task": identity, "weights": weights, "alpha": alpha, "limit": limit}


@contextmanager
def under_test(
    model: ModelFiles,
    device: str,
    weights: Ref | None,
    alpha: float,
    data: Sized,
    limit: int | None,
    step: str,
    told: str,
) -> Iterator[Callable[[int], None]]:
    """The model with its update, for the time of the context; gives what is to be called with the samples of each batch.

    Arguments:
        step: Whose progress it is.
        told: What is gone through, for people.
    """
    with (
        reported(step, told, tested(data, limit)) as advance,
        open_model(model, device).updated(open_update(model, device, weights), alpha),
    ):
        yield advance


def tested(data: Sized, limit: int | None) -> int:
    """How many test samples are measured."""
    return len(data) if limit is None else min(limit, len(data))
