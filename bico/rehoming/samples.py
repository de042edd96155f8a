"""Calibration and test samples from what people have: a folder, a task, a data set of raw examples, a data loader."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from bico.calibration.covariances import Batch
from bico.calibration.loaders import batches
from bico.calibration.sampling import draw_samples
from bico.data.base import Split, Task
from bico.errors import ConfigError, DataError, NotEnoughSamplesError
from bico.models.inputs import part


def task_of(data: Any, test: Any, class_names: Sequence[str] | None, prompts: Sequence[str], model: str) -> Task:
    """A task for models of a family, which prepare raw examples by themselves.

    Arguments:
        data: A task, the name of one, a folder of data, or a data set of (raw example, class index).
        test: Of a data set, the data set to measure on; else the task has its own.
        class_names: Of a data set; by default its `classes`.
        prompts: Of a data set, templates with {} for a class name.

    Raises:
        ConfigError: If it is none of these, or lacks names of its classes.
        BicoError: What `get_task` raises.
    """
    if isinstance(data, Task):
        return data
    if isinstance(data, str | Path):
        from bico.data.tasks import folders_by_task, get_task  # brings the families' libraries

        folder = Path(data).expanduser()
        if folder.exists():
            return get_task(next(iter(folders_by_task([folder]))), [folder])
        return get_task(str(data))
    if isinstance(data, DataLoader):
        raise ConfigError(
            f"{model} prepares raw examples by itself: give the data set of (picture or text, class) behind the loader."
        )
    if not isinstance(data, Dataset):
        raise ConfigError(f"The data are a {type(data).__name__}: give a folder, a task, or a data set of torch.")
    given: Any = class_names or getattr(data, "classes", ())
    names = tuple(map(str, given))
    if not names:
        raise ConfigError("The data set does not name its classes: give class_names, in the order of its labels.")
    splits = {"train": _split(data), **({"test": _split(test)} if test is not None else {})}
    for name, split in splits.items():
        if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(names):
            raise DataError(
                f"Labels of the {name} data run up to {int(split.labels.max())}, and there are {len(names)} classes."
            )
    text = isinstance(splits["train"].example(0), str)
    templates = tuple(prompts) or (("{}",) if text else ("a photo of a {}.",))
    sizes = {name: len(split) for name, split in splits.items()}
    return Task("data", names, templates, "in-memory", sizes, splits.__getitem__, "text" if text else "picture")


def _split(data: Any) -> Split:
    said = getattr(data, "targets", None)
    labels = said if said is not None and len(said) == len(data) else [data[index][1] for index in range(len(data))]
    return Split(torch.as_tensor([int(label) for label in labels], dtype=torch.int64), lambda index: data[index][0])


def calibration_batches(data: Any, target_data: Any, samples: int | None, seed: int, batch_size: int) -> list[Batch]:
    """Calibration batches for modules of one's own, which are given prepared inputs.

    Arguments:
        data: A data set, from which `samples` are drawn, or a loader that does not shuffle, whose first ones serve.
        target_data: The same samples as the target wants them; by default the source's.

    Raises:
        NotEnoughSamplesError: If a data set holds fewer.
        CalibrationError: What `batches` raises.
    """
    both = [one for one in (data, target_data) if one is not None]
    if samples is not None and all(isinstance(one, Dataset) for one in both):
        picks = draw_samples(min(len(one) for one in both), samples, seed).tolist()
        both = [Subset(one, picks) for one in both]
        samples = None
    found = batches(both[0], both[1] if len(both) > 1 else None, batch_size=batch_size)
    return found if samples is None else list(_first(found, samples))


def _first(found: Iterable[Batch], samples: int) -> Iterator[Batch]:
    """The first so many samples; the last batch is cut."""
    left = samples
    for batch in found:
        if left <= 0:
            return
        rows = slice(left)
        yield Batch(part(batch.source, rows), part(batch.target, rows), batch.labels[rows])
        left -= len(batch.labels)
    if left > 0:
        raise NotEnoughSamplesError(
            f"{samples} calibration samples asked for, but the data hold {samples - left}: lower samples, or give None for all."
        )


def measured_on(data: Any, batch_size: int, limit: int | None) -> list[tuple[Any, torch.Tensor]]:
    """Batches to measure a module on: the first `limit` samples, or all."""
    found = [(batch.source, batch.labels) for batch in batches(data, batch_size=batch_size)]
    if limit is None:
        return found
    held: list[tuple[Any, torch.Tensor]] = []
    for inputs, labels in found:
        if (left := limit - sum(len(one) for _, one in held)) > 0:
            held.append((part(inputs, slice(left)), labels[:left]))
    return held
