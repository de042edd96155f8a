"""What stages start from: models, tasks and their splits, opened once per process."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bico.calibration.sampling import draw_samples
from bico.data.tasks import Prepared, Task, get_task
from bico.evaluation.linear_head import read
from bico.evaluation.probe import as_head, fit_probe
from bico.models.loading import ModelFiles, load
from bico.models.protocol import PROBE, Model


@dataclass(frozen=True)
class TaskRef:
    """A task by name, with the folders that `--data` named, and how it is posed."""

    name: str
    folders: tuple[str, ...] = ()
    loss: str | None = None
    """Of text, the loss whose gradients are taken; of pictures there is one only."""

    def open(self) -> Task:
        return get_task(self.name, [Path(folder) for folder in self.folders])

    @property
    def identity(self) -> dict[str, object]:
        """What determines a loss on this task: for keys."""
        return self.open().identity | ({} if self.loss is None else {"loss": self.loss})


@cache
def open_model(files: ModelFiles, device: str) -> Model:
    """Loads a model once per process."""
    return load(files, torch.device(device))


@cache
def open_head(files: ModelFiles, device: str, task: TaskRef, indices: tuple[int, ...] | None = None) -> torch.Tensor:
    """The head in which the task's loss is taken.

    Arguments:
        indices: Training samples from which a head that has to be fitted is fitted; all, unless given, or as many as
            the model's family finds enough.
    """
    opened, model = task.open(), open_model(files, device)
    if task.loss != PROBE:
        return model.head(opened.class_names, opened.prompts)
    data = open_split(files, device, task, "train")
    enough: int | None = getattr(model, "probe_samples", None)
    if indices is None and enough is not None and enough < len(data):
        indices = tuple(draw_samples(len(data), enough, seed=0).tolist())
    return as_head(fit_probe(*read_features(model, data, indices), len(opened.class_names)))


def read_features(
    model: Model, data: Prepared, indices: Sequence[int] | None = None, batch: int = 250
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (samples, features) and labels (samples,) of some samples of a split, or of all."""
    chosen = torch.arange(len(data)) if indices is None else torch.tensor(indices)
    features = read(model, (data.batch(part)[0] for part in chosen.split(batch))).features
    return features, data.split.labels[chosen].to(features.device)


@cache
def open_split(files: ModelFiles, device: str, task: TaskRef, split: str) -> Prepared:
    """A split as one model wants it, preprocessed once per process."""
    model = open_model(files, device)
    return Prepared(task.open().open(split), model.prepare, model.stack)
